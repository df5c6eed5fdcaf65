"""A window of training copies from the device once, whatever is watched."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from trials import short_config

from bkray.data.shards import prepare
from bkray.train.run import Run
from bkray.train.window import WINDOW, train_window
from bkray.trial import compose, warm_up


class HostCopies(TorchDispatchMode):
    """Counts what would make the host wait for a device: numbers read, and copies to a device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        said = kwargs or {}
        name = func.overloadpacket.__name__
        reads = name in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero")
        if reads or (name == "_to_copy" and said.get("device") is not None):
            self.seen[name] += 1
        return func(*args, **said)


def a_run(text: Path, mixer: str = "linear_recurrence", **knobs: Any) -> Run:
    config = short_config(
        text, mixer, **{"eval_every": 64, "checkpoint_every": 64, "train.steps": 64, **knobs}
    )
    run = compose(config, prepare(config.data, config.model.n_seq), None)
    warm_up(run)
    train_window(run)  # the optimizer makes its state
    return run


@pytest.mark.parametrize("mixer", ["bk", "attention", "linear_recurrence", "mamba"])
@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"accumulation": 2, "dropout": 0.1, "position": "learned"},
        {"on_spike": "skip_step", "max_interventions": 3},
    ],
    ids=["plain", "accumulated", "skipping"],
)
def test_a_window_is_copied_to_the_host_once(
    mixer: str, knobs: dict[str, Any], text: Path
) -> None:
    run = a_run(text, mixer, **knobs)
    with HostCopies() as copies:
        window = train_window(run)
    assert len(window.loss_nats) == WINDOW
    assert copies.seen == {"_to_copy": 1}


def test_a_snapshot_copies_nothing_to_the_host(text: Path) -> None:
    run = a_run(text)
    with HostCopies() as copies:
        run.memory.keep(run.state())
    assert not copies.seen


def test_reading_a_number_is_counted() -> None:
    one = torch.ones(2)
    with HostCopies() as copies:
        bool(one[0] > 0)
        one.to("cpu", copy=True)
        one.double()
    assert copies.seen == {"_local_scalar_dense": 1, "_to_copy": 1}
