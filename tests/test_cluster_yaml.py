"""The cluster files: Ray's own checks; commands that run on any machine are run."""

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from bkray.cluster.cluster_file import commands, groups
from tests.metadata import metadata
from tests.servers import answers, free_port, wait_until
from tests.shell import lint

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "cluster.yaml").read_text()
CLUSTER = yaml.safe_load(TEXT)
FILES = ["cluster.yaml", "deploy/cluster-gcp.yaml", "deploy/cluster-local.yaml"]
HEAD = ["initialization_commands", "setup_commands", "head_setup_commands"]
METADATA = "http://169.254.169.254"


def cluster_of(where: str) -> Any:
    return yaml.safe_load((ROOT / where).read_text())


def validate(cluster: Mapping[str, Any]) -> Any:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(json.loads(json.dumps(cluster)))
    validate_config(prepared)
    return prepared


def only(commands: list[str], words: str) -> str:
    """The one command that holds ``words``."""
    [found] = [command for command in commands if words in command]
    return found


@pytest.mark.parametrize("where", FILES)
def test_passes_rays_own_schema(where: str) -> None:
    assert validate(cluster_of(where))["head_node_type"]


def test_no_worker_runs_while_none_is_needed() -> None:
    kinds = validate(CLUSTER)["available_node_types"]
    assert {name: kind["min_workers"] for name, kind in kinds.items() if name != "head"} == {
        "cpu": 0,
        "gpu": 0,
    }


def test_a_misspelt_key_would_not_pass() -> None:
    import jsonschema

    with pytest.raises(jsonschema.ValidationError, match="setup_comands"):
        validate({**CLUSTER, "setup_comands": []})


def test_names_no_version_that_the_project_does_not_pin() -> None:
    pins = set((ROOT / "constraints.txt").read_text().split())
    assert set(re.findall(r"[\w.-]+==[\w.]+", TEXT)) <= pins
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {tuple(map(int, found)) for found in re.findall(r"Python (\d+)\.(\d+)", TEXT)}
    floor = tuple(map(int, project["requires-python"].removeprefix(">=").split(".")))
    assert named
    assert min(named) >= floor
    assert {"torch", "ray[default,tune,train]"} <= set(project["dependencies"])
    assert {"torch", "ray", "boto3"} <= {pin.split("==")[0] for pin in pins}


def test_pins_no_build_that_only_a_cpu_has() -> None:
    assert "+" not in (ROOT / "constraints.txt").read_text()


def test_google_cloud_knows_spot_and_gpus_by_its_own_words() -> None:
    found = {group.name: group for group in groups(validate(cluster_of(FILES[1])))}
    assert {name for name, group in found.items() if group.spot} == {"cpu", "gpu"}
    assert found["gpu"].gpus == 1
    assert {group.at_least for group in found.values()} == {0}
    # the disk of ~/runs is named, not made: its size is not in the file
    assert {group.disk_gib for group in found.values()} == {150}


def test_spot_is_for_workers_alone_and_the_groups_fit_the_cluster() -> None:
    kinds = CLUSTER["available_node_types"]
    spot = {name for name, kind in kinds.items() if "InstanceMarketOptions" in kind["node_config"]}
    assert spot == {"cpu", "gpu"}
    assert CLUSTER["max_workers"] == sum(kind.get("max_workers", 0) for kind in kinds.values())


def test_holds_nothing_of_anybodys_account() -> None:
    assert not re.search(r"\b\d{12}\b|AKIA|arn:aws|s3://|\bami-[0-9a-f]|KeyName", TEXT)


@pytest.mark.parametrize("where", FILES)
def test_commands_are_shell(where: str, tmp_path: Path) -> None:
    scripts = []
    for number, (name, command) in enumerate(commands(cluster_of(where))):
        scripts.append(tmp_path / f"{number}-{name}.sh")
        scripts[-1].write_text(f"#!/bin/bash\n{command}\n")
    lint(*scripts)


@pytest.mark.parametrize("where", FILES)
def test_ray_asks_every_caller_for_a_token_and_shows_its_dashboard_to_ssh(where: str) -> None:
    said = [command for _, command in commands(cluster_of(where))]
    [head] = [command for command in said if "ray start --head" in command]
    assert "--dashboard-host=127.0.0.1" in head
    [mode] = {found for text in said for found in re.findall(r"RAY_AUTH_MODE=(\w+)", text)}
    assert mode == "token"


@pytest.mark.parametrize("where", FILES)
def test_mounts_what_an_installation_needs(where: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    words = [project["project"]["readme"], *project["project"]["license-files"]]
    names = (*packages, *words, "pyproject.toml", "constraints.txt")
    mounts = {f"~/bkray/{name}": name for name in names}
    token = {"~/.ray/auth_token": "~/.ray/auth_token"}
    deploy = {} if where == "deploy/cluster-local.yaml" else {"~/bkray/deploy": "deploy"}
    assert cluster_of(where)["file_mounts"] == {**mounts, **token, **deploy}


def run_at(home: Path, command: str, **environment: str) -> None:
    """Run a command as Ray does on a node: a shell that has read ``~/.bashrc``."""
    subprocess.run(
        ["bash", "-c", f"test -f ~/.bashrc && source ~/.bashrc; ({command})"],
        env={**os.environ, "HOME": str(home), **environment},
        cwd=home,
        check=True,
        timeout=120,
    )


def test_shells_of_a_node_find_the_environment_however_often_it_is_set_up(tmp_path: Path) -> None:
    (tmp_path / ".bashrc").write_text("export KEPT=1\n")
    writes = [only(CLUSTER[name], ">> ~/.bashrc") for name in HEAD[1:]]
    for command in [*writes, *writes]:
        run_at(tmp_path, command)
    assert len((tmp_path / ".bashrc").read_text().splitlines()) == 3
    run_at(tmp_path, f'test "${{PATH%%:*}}" = {tmp_path}/env/bin && test "$KEPT" = 1')
    run_at(tmp_path, f'test "$PIP_CONSTRAINT" = {tmp_path}/bkray/constraints.txt')
    run_at(tmp_path, 'test "$RAY_AUTH_MODE" = token')
    run_at(tmp_path, 'test "$MLFLOW_TRACKING_URI" = http://127.0.0.1:5000')


@pytest.mark.slow
def test_the_environment_is_made_once(tmp_path: Path) -> None:
    make = only(CLUSTER["setup_commands"], "-m venv")
    run_at(tmp_path, make)
    before = (tmp_path / "env/pyvenv.cfg").stat().st_mtime_ns
    run_at(tmp_path, make)
    assert (tmp_path / "env/pyvenv.cfg").stat().st_mtime_ns == before


def test_workers_boot_from_the_image_of_the_head(tmp_path: Path) -> None:
    bootstrap = tmp_path / "ray_bootstrap_config.yaml"
    bootstrap.write_text(json.dumps(CLUSTER))
    command = only(CLUSTER["head_start_ray_commands"], "ami-id")
    with metadata({"ami-id": "ami-0123"}) as address:
        run_at(tmp_path, command.replace(METADATA, address))
        assert METADATA in command
    seen = json.loads(bootstrap.read_text())
    kinds = seen["available_node_types"].values()
    assert {kind["node_config"].pop("ImageId") for kind in kinds} == {"ami-0123"}
    expected = json.loads(json.dumps(CLUSTER))
    for kind in expected["available_node_types"].values():
        del kind["node_config"]["ImageId"]
    assert seen == expected


@pytest.mark.slow
def test_mlflow_of_own_machines_answers_on_loopback_alone_and_stays(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    port = free_port()
    starts = [c for c in cluster_of(FILES[2])["head_start_ray_commands"] if ":5000" in c]
    starts = [c.replace(":5000", f":{port}").replace("5000", str(port)) for c in starts]
    own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    try:
        for command in [*starts, *starts]:
            run_at(tmp_path, command, **own)
            started = mlflow_servers(tmp_path)
        assert len(started) == 1
        assert answers(f"http://127.0.0.1:{port}/health")
        assert not answers(f"http://{loopback_aside()}:{port}/health")
        assert (tmp_path / "runs/mlflow.db").exists()
    finally:
        for pid in mlflow_servers(tmp_path):
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
    wait_until(lambda: not mlflow_servers(tmp_path))


def mlflow_servers(home: Path) -> list[int]:
    """The processes that lead a group and serve the store in ``home``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            pid = int(path.parent.name)
            if f"{home}/runs/mlflow.db" in path.read_text() and os.getpgid(pid) == pid:
                found.append(pid)
    return found


def loopback_aside() -> str:
    """An address of this machine that a server bound to 127.0.0.1 does not hear."""
    return "127.0.0.2"
