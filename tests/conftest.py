"""Fixtures of the whole suite: one thread, a token cache of its own, a small text to train on."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny import write_text

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read once, when triton is imported


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep prepared corpora out of the user's cache, and thread counts out of later processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BKRAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
            patch.setenv(name, "1")
        patch.setenv("RAY_worker_niceness", "0")  # else tests beside them leave them no time
        yield


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """A trial sets the number of threads for its process; each test starts from one again."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """One Ray session for the tests of a module; ``run_sweep`` joins it and leaves it up."""
    from bkray.cluster.session import session

    with session(address=None, threads=1):
        yield


@pytest.fixture(scope="module")
def two_gpus() -> Iterator[None]:
    """A Ray session that believes in two GPUs; nothing here computes on them."""
    import ray

    from bkray.cluster.session import worker_environment

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        ray.init(
            "local",
            num_cpus=2,
            num_gpus=2,
            resources={"accelerator_type:A10G": 1},
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            log_to_driver=False,
            runtime_env={"env_vars": worker_environment(1)},
        )
        yield
        ray.shutdown()


@pytest.fixture
def say_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Call bkray in this process, in a folder of its own: what it imports is there already."""
    from bkray.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["bkray", *words])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, errors = capfd.readouterr()
        return subprocess.CompletedProcess(words, int(ended.value.code or 0), out, errors)

    return call


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of 40 kB of text with words, repeats and surprises."""
    return write_text(tmp_path_factory.mktemp("corpus") / "text.txt", seed=0)
