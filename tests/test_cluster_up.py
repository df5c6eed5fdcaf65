"""``ray up cluster.yaml`` and the workers that follow, against a stand-in for AWS."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bkray.cluster.head import artifacts

ROOT = Path(__file__).parents[1]
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """What ``tests.aws`` wrote, by the name of the file."""
    folder = tmp_path_factory.mktemp("aws")
    child = [sys.executable, "-m", "tests.aws", "cluster.yaml", str(folder)]
    subprocess.run(child, cwd=ROOT, check=True, timeout=200, capture_output=True)

    def read(name: str) -> list[Any]:
        lines = (folder / name).read_text().splitlines()
        return [json.loads(line) for line in (lines[-1:] if name == "left.json" else lines)]

    return read


def called(told: Callable[[str], Any]) -> list[str]:
    """The commands of ``CLUSTER`` as the head got them, without what Ray puts around them."""
    [whole] = zip(*(shlex.split(call) for call in told("ssh.jsonl")), strict=True)
    ours = [command for name in CLUSTER if name.endswith("_commands") for command in CLUSTER[name]]
    found = [next((ours_ for ours_ in ours if ours_ in call), "") for call in whole]
    return [command for command in found if command]


def test_the_head_is_set_up_and_started_in_this_order(told: Callable[[str], Any]) -> None:
    lists = ("initialization_commands", "setup_commands", "head_setup_commands")
    expected = [command for name in lists for command in CLUSTER[name]]
    expected += CLUSTER["head_start_ray_commands"]
    assert called(told) == [*expected, "ray stop"]  # which ends it, at ray down


def test_nothing_else_is_installed_on_the_head(told: Callable[[str], Any]) -> None:
    installs = [call for call in told("ssh.jsonl") if "pip install" in call]
    assert len(installs) == 2
    assert "torch" in installs[0]
    assert "$HOME/bkray[aws]" in installs[1]


def test_ray_starts_with_slots_and_its_dashboard_on_loopback(told: Callable[[str], Any]) -> None:
    [start] = [call for call in told("ssh.jsonl") if "ray start --head" in call]
    assert "--dashboard-host=127.0.0.1" in start
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start
    assert r"--resources=\"{\\\"slot\\\": $(nproc)}\"" in json.dumps(start)


def test_the_head_is_on_demand_and_workers_are_on_spot(told: Callable[[str], Any]) -> None:
    [machines] = told("machines.json")
    markets = {name: machine["market"] for name, machine in machines.items()}
    assert markets == {"head": "on demand", "cpu": "spot", "gpu": "spot"}
    assert {name: machine["disk_gib"] for name, machine in machines.items()} == {
        "head": [100, 150],  # ~/runs has a volume of its own
        "cpu": [150],
        "gpu": [150],
    }
    assert {machine["zone"] for machine in machines.values()} == {"us-west-2a"}


def test_ssh_alone_is_open_to_the_world(told: Callable[[str], Any]) -> None:
    [ports] = told("ports.json")
    assert [port for port in ports if port[2]] == [[22, 22, ["0.0.0.0/0"]]]


def test_the_head_is_told_the_bucket_and_gets_the_token(told: Callable[[str], Any]) -> None:
    [bootstrap] = told("bootstrap.json")
    assert bootstrap["metadata"]["bucket"] == "somebodys-bucket"
    assert artifacts(bootstrap) == "s3://somebodys-bucket/mlflow"
    assert "0" * 64 not in json.dumps(bootstrap)
    assert any(target.endswith("~/.ray/auth_token") for target in told("rsync.jsonl"))


def test_verify_is_run_on_the_head(told: Callable[[str], Any]) -> None:
    words = "bkray cluster verify --address auto --nodes 2 --gpus 1 --wait 900"
    assert sum(words in call for call in told("ssh.jsonl")) == 1


def test_a_machine_that_ray_overlooks_is_seen_and_told(told: Callable[[str], Any]) -> None:
    [left] = told("stray.json")
    assert len(left) == 1


def test_down_ends_every_machine_and_names_what_stays(told: Callable[[str], Any]) -> None:
    [states] = told("states.json")
    assert states == dict.fromkeys(("head", "cpu", "gpu"), "terminated")
    [left] = told("left.json")
    assert left["machines"] == []
    assert [volume.endswith("(100 GiB)") for volume in left["volumes"]] == [True]
    assert left["bucket"] == "somebodys-bucket"


def test_a_machine_has_a_slot_per_cpu_and_gpus_where_it_should(told: Callable[[str], Any]) -> None:
    [bootstrap] = told("bootstrap.json")
    has = {name: kind["resources"] for name, kind in bootstrap["available_node_types"].items()}
    assert all(resources["slot"] == resources["CPU"] for resources in has.values())
    assert {name: resources.get("GPU", 0) for name, resources in has.items()} == {
        "head": 0,
        "cpu": 0,
        "gpu": 1,
    }
