"""An MLflow client that outlives a store that is away for a while."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from bkray.sinks.mlflow_store import Tracking, first_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
Answer = TypeVar("Answer")


class StoreAwayError(Exception):
    """The view is closing and the store still does not answer."""


class PatientClient:
    """Repeats a request until the store answers or ``closing`` is set; complains once.

    Requests must bear to be repeated: an answer may be lost after the store took the request.
    """

    def __init__(
        self, tracking: Tracking, closing: threading.Event, warn: Callable[[str], None]
    ) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking.uri)
        self._closing = closing
        self._warn = warn
        self._complained = False

    def ask(self, request: "Callable[[MlflowClient], Answer]") -> Answer | None:
        """Return the answer; ``None`` if the store refuses the request for good.

        Raises:
            StoreAwayError: the store does not answer and the view is closing.
        """
        from mlflow.exceptions import MlflowException

        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                return request(self._client)
            except (MlflowException, OSError) as error:
                self._complain(error)
                if not _is_passing(error):
                    return None
            if self._closing.wait(pause):
                raise StoreAwayError
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            self._warn(
                "MLflow lags behind or lacks something; training goes on and Parquet has it all "
                f"({first_line(error)})"
            )


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
