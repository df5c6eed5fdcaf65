"""The first signal asks, the second one acts."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from bkray.cluster.interrupt import on_interrupt


class ActedError(Exception):
    """What the handlers of before do here."""


@pytest.fixture(autouse=True)
def handlers_of_before() -> Iterator[None]:
    def act(*_: object) -> None:
        raise ActedError

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, act) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGINT, "ctrl-c"), (signal.SIGTERM, "terminated")]
)
def test_the_first_signal_asks_and_the_second_acts(
    number: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    with pytest.raises(ActedError), on_interrupt(asked.append):
        os.kill(os.getpid(), number)
        assert asked == [said]
        os.kill(os.getpid(), number)
    assert asked == [said]
    assert capfd.readouterr().err == "stopping; press again to quit at once\n"


def test_afterwards_signals_do_what_they_did() -> None:
    said: list[str] = []
    with on_interrupt(said.append):
        pass
    with pytest.raises(ActedError):
        os.kill(os.getpid(), signal.SIGTERM)
    assert said == []


def test_another_thread_takes_no_signals() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def elsewhere() -> None:
        with on_interrupt(lambda _: None):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before]
