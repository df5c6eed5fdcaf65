"""A head that asks for a token: who has none is refused, a job with it reaches MLflow."""

import base64
import configparser
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from servers import answers, free_port, wait_until

ROOT = Path(__file__).parents[2]
TOKEN = "0123456789abcdef" * 4
PASSWORD = "a-long-password-of-ours"
TINY = ("model.d_model=16", "model.n_seq=32", "train.steps=8", "train.batch_size=4")
TINY += ("train.eval_every=8", "train.eval_windows=2")

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Head:
    """Where it is reached, and the environment of who may."""

    dashboard: str
    gcs: str
    mlflow: str
    folder: Path
    knows: dict[str, str]

    @property
    def stranger(self) -> dict[str, str]:
        """The environment of another user of this machine."""
        own = {name: value for name, value in self.knows.items() if "TOKEN" not in name}
        return {**own, "RAY_AUTH_MODE": "disabled", "RAY_NUM_REDIS_GET_RETRIES": "1"}


@contextmanager
def running(words: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    """A program with whatever it starts, gone at the end."""
    with log.open("w") as out:
        child = subprocess.Popen(
            words, env=environment, stdout=out, stderr=out, cwd=log.parent, start_new_session=True
        )
    try:
        yield
    finally:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(15)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait(20)


def mlflow_words(folder: Path, port: int) -> list[str]:
    """The start of MLflow behind a password as deploy/ has it, for another home and port."""
    unit = configparser.RawConfigParser(strict=False)
    unit.read(ROOT / "deploy/mlflow-password.conf")
    start = unit["Service"]["ExecStart"].replace("/home/ubuntu/runs", str(folder))
    start = start.replace("${MLFLOW_ARTIFACTS}", str(folder / "bucket"))
    _, *rest = shlex.split(start)
    rest[rest.index("--port") + 1] = str(port)
    return [sys.executable, "-m", "mlflow", *rest]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("head")
    (folder / "token").write_text(TOKEN)
    gcs, dashboard, mlflow = free_port(), free_port(), free_port()
    knows = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    knows |= {
        "HOME": str(folder),
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{mlflow}",
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": PASSWORD,
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "0" * 32,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    short = tempfile.mkdtemp(prefix="head-", dir="/tmp")  # a socket's path has 107 characters
    words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    words += [f"--port={gcs}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
    words += [f"--ray-client-server-port={free_port()}", f"--temp-dir={short}"]
    words += [f"--dashboard-agent-listen-port={free_port()}", "--object-store-memory=200000000"]
    words += ["--num-cpus=2", '--resources={"slot": 2}', "--node-ip-address=127.0.0.1"]
    reached = Head(
        dashboard=f"http://127.0.0.1:{dashboard}",
        gcs=f"127.0.0.1:{gcs}",
        mlflow=f"http://127.0.0.1:{mlflow}",
        folder=folder,
        knows=knows,
    )
    try:
        with (
            running(mlflow_words(folder, mlflow), knows, folder / "mlflow.log"),
            running(words, knows, folder / "ray.log"),
        ):
            wait_until(lambda: status(reached, "/api/jobs/", TOKEN) == 200, seconds=90)
            wait_until(lambda: answers(f"{reached.mlflow}/health"), seconds=90)
            yield reached
    finally:
        shutil.rmtree(short, ignore_errors=True)


def status(head: Head, path: str, token: str | None = None, body: bytes | None = None) -> int:
    """What the dashboard answers: a status of HTTP, or 0 where nobody does."""
    return asked(head.dashboard + path, token and f"Bearer {token}", body)[0]


def with_password(head: Head, path: str, password: str | None = None) -> tuple[int, bytes]:
    """What MLflow answers ``admin``, or nobody."""
    basic = base64.b64encode(f"admin:{password}".encode()).decode()
    return asked(head.mlflow + path, None if password is None else f"Basic {basic}")


def asked(url: str, known: str | None, body: bytes | None = None) -> tuple[int, bytes]:
    headers = {} if known is None else {"Authorization": known}
    request = urllib.request.Request(url, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return int(response.status), response.read()
    except urllib.error.HTTPError as error:
        error.close()
        return error.code, b""
    except OSError:
        return 0, b""


def test_the_dashboard_tells_nothing_without_the_token(head: Head) -> None:
    paths = ("/api/jobs/", "/api/version", "/nodes?view=summary", "/api/v0/actors", "/logs/")
    assert {path: status(head, path) for path in paths} == dict.fromkeys(paths, 401)
    assert status(head, "/api/jobs/", "0" * 64) == 403
    assert status(head, "/api/jobs/", TOKEN) == 200


def test_a_job_is_not_taken_without_the_token(head: Head) -> None:
    trace = head.folder / "was-here"
    body = json.dumps({"entrypoint": f"touch {trace}"}).encode()
    assert status(head, "/api/jobs/", body=body) == 401
    assert status(head, "/api/jobs/", "0" * 64, body=body) == 403
    assert not trace.exists()


STRANGER = """
import sys, ray
from ray.job_submission import JobSubmissionClient
from bkray.cluster.session import session
from bkray.errors import ConfigError
dashboard, gcs = sys.argv[1:]
try:
    JobSubmissionClient(dashboard).submit_job(entrypoint="true")
except ray.exceptions.AuthenticationError as error:
    print("job:", str(error).splitlines()[0])
try:
    with session(address=gcs, threads=1):
        print("joined")
except ConfigError as error:
    print("sweep:", error)
"""


def test_another_process_without_the_token_can_neither_submit_nor_join(head: Head) -> None:
    words = [sys.executable, "-c", STRANGER, head.dashboard, head.gcs]
    said = subprocess.run(words, env=head.stranger, capture_output=True, text=True, timeout=120)
    assert said.returncode == 0, said.stderr
    job, sweep = said.stdout.splitlines()
    assert job.startswith("job: Authentication required")
    assert sweep.startswith(f"sweep: the Ray cluster at address={head.gcs} asks for its token")


def test_a_submitted_sweep_shows_in_mlflow_with_its_files(
    head: Head, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, head.knows[name])
    sweep = [sys.executable, "-m", "bkray.cli", "sweep", "act", "--preset", "smoke", *TINY]
    sweep += ["--trials", "1", f"data.corpus={text}", "--address", "auto"]
    sweep += ["--runs", str(head.folder / "runs")]
    submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit"]
    submit += ["--address", head.dashboard, "--", *sweep]
    done = subprocess.run(submit, env=head.knows, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    [folder] = (head.folder / "runs/act").iterdir()
    outcomes = [json.loads(path.read_text()) for path in folder.glob("trials/*/outcome.json")]
    assert {outcome["outcome"] for outcome in outcomes} == {"ok"}
    in_store(head, n_trials=len(outcomes))


def in_store(head: Head, n_trials: int) -> None:
    """The server has a run of each trial, and gives out its files, which lie in its own folder."""
    from mlflow import MlflowClient

    client = MlflowClient(head.mlflow)
    [experiment] = client.search_experiments(filter_string="name = 'act'")
    runs = client.search_runs([experiment.experiment_id], "tags.outcome = 'ok'")
    assert len(runs) == n_trials
    assert experiment.artifact_location.startswith("mlflow-artifacts:")
    for run in runs:
        assert "best/val_loss_nats" in run.data.metrics
        assert "config.json" in {file.path for file in client.list_artifacts(run.info.run_id)}
    path = f"/get-artifact?path=config.json&run_uuid={runs[0].info.run_id}"
    assert with_password(head, path)[0] == 401
    assert json.loads(with_password(head, path, PASSWORD)[1])["model.d_model"] == 16
    assert len(list((head.folder / "bucket").rglob("config.json"))) == n_trials


VERIFY = """
import sys
from bkray.cli import main
from bkray.cluster.verify import verify
from bkray.errors import ClusterError
try:
    verify(address=sys.argv[1], nodes=2, wait_seconds=2)
except ClusterError as error:
    print(error)
sys.argv = ["bkray", "cluster", "verify", "--address", sys.argv[1], "--json"]
main()
"""


def test_verify_runs_on_every_node_and_says_which_are_missing(head: Head) -> None:
    words = [sys.executable, "-c", VERIFY, head.gcs]
    done = subprocess.run(words, env=head.knows, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    missing, said = done.stdout.split("\n", 1)
    assert re.match(r"2 nodes with .* were asked, 1 nodes are there after 2 s", missing)
    found = json.loads(said)
    assert (found["nodes"], found["gpus"], len(found["workers"])) == (1, 0.0, 1)
    assert found["seconds"] >= 5
    assert found["rounds"] > 10
    import ray
    import torch

    [worker] = found["workers"]
    assert (worker["ray"], worker["torch"]) == (ray.__version__, torch.__version__)


def test_mlflow_behind_a_password_asks_for_it(head: Head) -> None:
    path = "/api/2.0/mlflow/experiments/search?max_results=1"
    given = (None, "password1234", PASSWORD)
    assert [with_password(head, path, password)[0] for password in given] == [401, 401, 200]
