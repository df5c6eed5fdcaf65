"""No password of a store is printed or written down."""

import threading
from pathlib import Path

import pytest

from bkray.cli.words import where_to_look
from bkray.sinks.addresses import without_password
from bkray.sinks.mlflow_client import PatientClient
from bkray.sinks.mlflow_store import Tracking


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://me:hidden@host:5000", "http://***@host:5000"),
        ("https://hidden@host/a", "https://***@host/a"),
        ("postgresql://me:hid@den@host/b", "postgresql://***@host/b"),
        ("postgresql://me:hid/den@host/b", "postgresql://***@host/b"),
        ("http://host:80/?x=1&password=hidden&y=2", "http://host:80/?x=1&password=***&y=2"),
        ("postgresql:///b?user=me&sslpassword=hidden", "postgresql:///b?user=me&sslpassword=***"),
        ("s3://b/x?access_token=hidden#z", "s3://b/x?access_token=***#z"),
        ("no way to (http://a:hidden@b): x@y", "no way to (http://***@b): x@y"),
        ("http://host:5000/#/experiments/1?who=x@y", "http://host:5000/#/experiments/1?who=x@y"),
        ("sqlite:////home/me/runs/mlflow.db", "sqlite:////home/me/runs/mlflow.db"),
    ],
)
def test_what_only_the_owner_may_know_is_masked(address: str, shown: str) -> None:
    assert without_password(address) == shown
    assert without_password(shown) == shown
    assert Tracking(address, None).shown == shown


@pytest.mark.parametrize("address", ["http://me:hidden@host", "http://host?password=hidden"])
def test_where_to_look_tells_no_password(address: str) -> None:
    assert "hidden" not in where_to_look(Tracking(address, None), Path("runs"), "/#/experiments/1")


def test_a_complaint_tells_no_password() -> None:
    said: list[str] = []
    client = PatientClient(Tracking("http://127.0.0.1:1", None), threading.Event(), said.append)

    def refused(_: object) -> None:
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

        why = "no such run at http://me:hidden@host?token=hidden"
        raise MlflowException(why, error_code=INVALID_PARAMETER_VALUE)

    assert client.ask(refused) is None
    [complaint] = said
    assert "no such run at http://***@host" in complaint
    assert "hidden" not in complaint
