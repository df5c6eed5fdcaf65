"""The store that MLflow shows: opened, refused, and opened by several at once."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from whole_database import made_whole

from bkray.errors import TrackingError
from bkray.sinks.mlflow import (
    open_store,
)


@pytest.fixture(autouse=True)
def _no_server_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_mlflow_says_nothing(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from bkray.sinks.mlflow import MlflowView, open_store\n"
        "view = MlflowView(open_store(Path(sys.argv[1])), 'e', 'n', {}, ())\nview.close()\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tmp_path / "mlruns").exists()


def test_a_server_that_does_not_answer_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:1")
    began = time.monotonic()
    with pytest.raises(TrackingError) as caught:
        open_store(tmp_path)
    assert time.monotonic() - began < 15
    for word in ("http://***@127.0.0.1:1", "start that server", "unset MLFLOW_TRACKING_URI"):
        assert word in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_folder_that_is_a_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(TrackingError, match="no MLflow store can be made in"):
        open_store(tmp_path / "runs")


def test_a_database_that_is_none_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database at all, and longer than a header " * 30)
    with pytest.raises(TrackingError, match="move that file away"):
        open_store(tmp_path)


def test_a_new_database_gets_its_name_when_all_of_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db.1234.tmp").write_text("half: its process was killed")
    assert made_whole(
        tmp_path / "mlflow.db",
        "from bkray.sinks.mlflow import open_store\nopen_store(place.parent)\n",
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mlflow.lock", "mlflow.db"]


@pytest.mark.slow
def test_several_processes_may_open_a_new_store_at_once(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from bkray.sinks.mlflow import MlflowView, open_store\n"
        "MlflowView(open_store(Path(sys.argv[1])), 'e', sys.argv[2], {}, ()).close()\n"
    )
    commands = [[sys.executable, "-c", code, str(tmp_path), f"s{i}"] for i in range(3)]
    children = [subprocess.Popen(c, stderr=subprocess.PIPE, text=True) for c in commands]
    said = [child.communicate(timeout=120)[1] for child in children]
    assert said == [""] * 3
    assert [child.returncode for child in children] == [0] * 3
