"""An MLflow client that outlives a store that is away for a while."""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from bkray.sinks.mlflow_store import Tracking, first_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
_LAST_PAUSES = 2  # a view that closes bears one hiccup of the store, and does not wait for it
Answer = TypeVar("Answer")


class StoreAwayError(Exception):
    """The view is closing and the store still does not answer."""


class PatientClient:
    """Repeats a request until the store answers or ``closing`` is set; complains once.

    Requests must bear to be repeated: an answer may be lost after the store took the request.
    ``n_answered`` counts answers, refusals too: who waits for the store sees it move. What the
    complaint says is ``complaint``, and in brackets the reason.
    """

    def __init__(
        self,
        tracking: Tracking,
        closing: threading.Event,
        warn: Callable[[str], None],
        complaint: str = "MLflow lags behind or lacks something",
    ) -> None:
        from mlflow import MlflowClient

        self.tracking = tracking
        self.n_answered = 0
        self.n_refused = 0
        self._client = MlflowClient(tracking.uri)
        self._closing = closing
        self._warn = warn
        self._complaint = complaint
        self._complained = False

    def ask(self, request: "Callable[[MlflowClient], Answer]") -> Answer | None:
        """Return the answer; ``None`` if the store refuses the request for good.

        Raises:
            StoreAwayError: the store does not answer and the view is closing.
        """
        from mlflow.exceptions import MlflowException

        pause, last_pauses = _FIRST_PAUSE_SECONDS, _LAST_PAUSES
        while True:
            try:
                answer = request(self._client)
                self.n_answered += 1
                return answer
            except (MlflowException, OSError) as error:
                self._complain(error)
                if not _is_passing(error):
                    self.n_answered += 1
                    self.n_refused += 1
                    return None
            if self._closing.wait(pause):
                last_pauses -= 1
                if last_pauses < 0:
                    raise StoreAwayError
                time.sleep(_FIRST_PAUSE_SECONDS)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def tell(self, request: "Callable[[MlflowClient], object]") -> bool:
        """Make a request that has no answer; say whether the store took it.

        Raises:
            StoreAwayError: the store does not answer and the view is closing.
        """

        def told(client: "MlflowClient") -> bool:
            request(client)
            return True

        return self.ask(told) or False

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            self._warn(f"{self._complaint} ({first_line(error)})")


def _is_passing(error: Exception) -> bool:
    """Say whether the store may take the same request later."""
    import requests
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        status = int(error.get_http_status_code())  # type: ignore[no-untyped-call]  # mlflow's
    elif isinstance(error, requests.HTTPError) and error.response is not None:
        status = int(error.response.status_code)
    else:
        return isinstance(error, requests.RequestException)
    return status >= 500 or status == 429
