"""What SECURITY.md promises of the sources: how they read files, and where they serve."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bkray.errors import ConfigError
from bkray.sweep import Objective, Preset, Sweep

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path
    for folder in ("bkray", "sweeps", "search_spaces", "examples")
    for path in (ROOT / folder).rglob("*.py")
)
UNPICKLED = {"bkray/cluster/tune_line.py"}
"""Ray's own file of a trial's error, written by a worker of the same cluster."""


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Every call in the sources: file, name as written, the call."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield path.relative_to(ROOT).as_posix(), ast.unparse(node.func), node


CALLS = list(calls())


def where(pattern: str) -> set[str]:
    return {file for file, name, _ in CALLS if re.fullmatch(pattern, name)}


def test_yaml_is_read_by_the_safe_loader_alone() -> None:
    assert where(r"yaml\.safe_load(_all)?")
    assert not where(r"yaml\.(unsafe_|full_)?load(_all)?")


def test_nothing_from_disk_is_unpickled_but_rays_own_error() -> None:
    assert where(r"(cloud)?pickle\.loads?|joblib\.load|dill\.loads?|.*Unpickler") == UNPICKLED


def test_torch_reads_weights_only() -> None:
    loads = [call for _, name, call in CALLS if name == "torch.load"]
    assert loads
    for call in loads:
        said = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert said.get("weights_only") == "True"


def test_no_text_is_run_as_code_and_no_shell_sees_a_value() -> None:
    assert not where(r"eval|exec|os\.system|os\.popen|subprocess\.getoutput")
    for file, _, call in CALLS:
        shell = [word for word in call.keywords if word.arg == "shell"]
        assert not shell, file


def test_whoever_serves_serves_this_machine_alone() -> None:
    """Addresses in the sources, and in what ships beside them."""
    hosts = re.compile(r"\b0\.0\.0\.0\b(?!/)|[\"']::[\"']")
    shipped = [*SOURCES, *(ROOT / "deploy").iterdir(), ROOT / "cluster.yaml"]
    open_ = {
        path.relative_to(ROOT).as_posix()
        for path in shipped
        if path.is_file() and hosts.search(path.read_text())
    }
    # Kubernetes reaches a pod by its address; every request needs the token
    assert open_ == {"deploy/rayjob.yaml"}


@pytest.mark.parametrize("name", ["../../elsewhere", "/etc/cron.d", "..", "a/b", "", ".hidden"])
def test_a_sweep_writes_into_no_folder_but_its_own(name: str) -> None:
    loss = Objective(column="best_val_loss_nats", direction="minimize")
    with pytest.raises(ConfigError, match="sweep name"):
        Sweep(name=name, objectives=(loss,), presets={"small": Preset(trials=1)})
