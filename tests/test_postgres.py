"""PostgreSQL as MLflow's and Optuna's store, tried on a real one where it is installed."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chaos.small_sweep import SWEEP
from servers import free_port
from tiny import write_text

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
    postgres: Callable[[str], str],
    say_here: Callable[..., subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    import optuna
    from mlflow import MlflowClient

    mlflow_at, optuna_at = postgres("mlflow"), postgres("optuna")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_at)
    monkeypatch.setenv("OPTUNA_STORAGE", optuna_at)
    text, small = write_text(tmp_path / "text.txt", seed=0), Path(__file__).parent / "chaos"
    words = ["sweep", str(small / "small_sweep.py"), "--preset", "smoke", "--local", "--out", "s"]
    words += ["--trials", "2", "--scheduler", "none", "steps=32", f"data.corpus={text}"]
    first = say_here(*words, "--time-budget", "0.001")
    assert first.returncode == 4, first.stderr
    assert not (tmp_path / "s/study.db").exists()
    assert "study.json" in {path.name for path in (tmp_path / "s").iterdir()}
    resumed = say_here("resume", "s", "--time-budget", "10m")
    assert resumed.returncode == 0, resumed.stderr
    assert say_here("mlflow-sync", "s").stdout.startswith("2 trials; 0 points")
    (name,) = optuna.get_all_study_names(optuna_at)
    assert name.startswith(SWEEP.name)
    study = optuna.load_study(study_name=name, storage=optuna_at)
    assert len(study.get_trials(states=[optuna.trial.TrialState.COMPLETE])) == 2
    client = MlflowClient(mlflow_at)
    experiments = [one.experiment_id for one in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.outcome = 'ok'")
    assert len(runs) == 2
    assert all("best/val_loss_nats" in run.data.metrics for run in runs)
    monkeypatch.delenv("OPTUNA_STORAGE")
    lost = say_here("resume", "s")
    assert lost.returncode == 2
    assert "set OPTUNA_STORAGE" in lost.stderr


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
    from bkray.cluster.study import open_study
    from bkray.errors import BkrayError

    pytest.importorskip("psycopg", reason="the extra postgres is not installed")
    monkeypatch.setenv("OPTUNA_STORAGE", address)
    with pytest.raises(BkrayError, match=says) as told:
        open_study(tmp_path, SWEEP)
    assert "secret" not in str(told.value)
    with contextlib.suppress(StopIteration):
        assert not next(tmp_path.iterdir())
