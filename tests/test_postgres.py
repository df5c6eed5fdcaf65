"""PostgreSQL as MLflow's and Optuna's store, tried on a real one where it is installed."""

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos.small_sweep import SWEEP
from servers import free_port
from tiny import write_text

from bkray.cluster.study import open_study
from bkray.errors import BkrayError, ResumeError

pytestmark = pytest.mark.slow

_PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
_UNPRIVILEGED = "nobody"


@pytest.fixture(scope="module")
def postgres() -> Iterator[Callable[[str], str]]:
    """A PostgreSQL server of our own; call it with a name for the address of a new database."""
    found = shutil.which(
        "initdb", path=os.pathsep.join([*map(str, _PROGRAMS), os.environ["PATH"]])
    )
    if found is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    programs, port = Path(found).parent, free_port()
    user = pwd.getpwuid(os.getuid()).pw_name if os.getuid() else _UNPRIVILEGED
    with tempfile.TemporaryDirectory(prefix="pg-") as place:
        shutil.chown(place, user)

        def run(*words: str, **more: object) -> None:
            quiet = {"check": True, "capture_output": True, "cwd": "/", "user": user}
            subprocess.run([programs / words[0], *words[1:]], **{**quiet, **more})  # type: ignore[call-overload]

        run("initdb", "-D", f"{place}/data", "-U", "bkray", "-A", "trust", "--no-sync")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={place}"
        log = ("-l", f"{place}/log")  # its children keep what they are given, so give no pipe
        run(
            *("pg_ctl", "-D", f"{place}/data", *log, "-w", "-o", f"{options} -F", "start"),
            capture_output=False,
        )

        def database(name: str) -> str:
            run("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "bkray", name)
            return f"postgresql://bkray@127.0.0.1:{port}/{name}"

        try:
            yield database
        finally:
            run("pg_ctl", "-D", f"{place}/data", "-m", "fast", "-w", "stop")


def test_a_sweep_keeps_its_study_and_its_runs_there(
    postgres: Callable[[str], str], tmp_path: Path
) -> None:
    import psycopg

    mlflow_at, optuna_at = postgres("mlflow"), postgres("optuna")
    there = {"MLFLOW_TRACKING_URI": mlflow_at, "OPTUNA_STORAGE": optuna_at}

    def say(*words: str, status: int = 0) -> str:
        """Call bkray in a process of its own: databases leave their connections open."""
        command = [sys.executable, "-m", "bkray.cli", *words]
        more = {"cwd": tmp_path, "env": {**os.environ, **there}}
        said = subprocess.run(command, capture_output=True, text=True, **more)  # type: ignore[call-overload]
        assert said.returncode == status, said.stderr
        return str(said.stdout)

    def ask(address: str, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(address) as connection:
            return connection.execute(query).fetchall()

    text, small = write_text(tmp_path / "text.txt", seed=0), Path(__file__).parent / "chaos"
    words = ["sweep", str(small / "small_sweep.py"), "--preset", "smoke", "--local", "--out", "s"]
    words += ["--trials", "2", "--scheduler", "none", "steps=32", f"data.corpus={text}"]
    say(*words, "--time-budget", "0.001", status=4)
    assert not (tmp_path / "s/study.db").exists()
    assert "bkray@" in (tmp_path / "s/study.json").read_text()
    say("resume", "s", "--time-budget", "10m")
    assert say("mlflow-sync", "s").startswith("2 trials; 0 points")
    ((name,),) = ask(optuna_at, "SELECT study_name FROM studies")
    assert name.startswith(SWEEP.name)
    assert ask(optuna_at, "SELECT state FROM trials") == [("COMPLETE",)] * 2
    ok = "SELECT run_uuid FROM tags WHERE key = 'outcome' AND value = 'ok'"
    best = "SELECT value FROM latest_metrics WHERE key = 'best/val_loss_nats'"
    assert len(ask(mlflow_at, ok)) == 2
    assert len(ask(mlflow_at, f"{best} AND run_uuid IN ({ok})")) == 2
    with pytest.raises(ResumeError, match="set OPTUNA_STORAGE"):
        open_study(tmp_path / "s", SWEEP)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("nonsense", "must be the address of a database"),
        ("postgresql://me:secret@127.0.0.1:1/x", "me:\\*\\*\\*@127.0.0.1:1/x does not answer"),
    ],
)
def test_a_database_that_is_none_is_told_without_its_password(
    address: str, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("psycopg", reason="the extra postgres is not installed")
    monkeypatch.setenv("OPTUNA_STORAGE", address)
    with pytest.raises(BkrayError, match=says) as told:
        open_study(tmp_path, SWEEP)
    assert "secret" not in str(told.value)
    with contextlib.suppress(StopIteration):
        assert not next(tmp_path.iterdir())
