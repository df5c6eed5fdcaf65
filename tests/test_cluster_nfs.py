"""Who may mount ``~/runs``: the cluster files' command is run, with a ``sudo`` of our own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bkray.cluster.head import exports
from bkray.errors import ClusterError
from tests.metadata import metadata
from tests.shell import program

ROOT = Path(__file__).parents[1]
SUDO = r"""
case $1 in exportfs) echo "$*" >> "$ELSEWHERE/said"; exit ;; esac
exec "${@/#\/etc/$ELSEWHERE/etc}"
"""


@pytest.fixture
def ec2(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    known = {
        "mac": "0e:00",
        "network/interfaces/macs/0e:00/vpc-ipv4-cidr-blocks": "172.31.0.0/16\n10.9.0.0/20",
    }
    with metadata(known) as address:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", address)
        yield


def cluster_of(where: str) -> dict[str, Any]:
    cluster: dict[str, Any] = yaml.safe_load((ROOT / where).read_text())
    return cluster


@pytest.mark.usefixtures("ec2")
@pytest.mark.parametrize(
    ("where", "networks"),
    [
        ("cluster.yaml", "172.31.0.0/16 10.9.0.0/20"),
        ("deploy/cluster-gcp.yaml", "10.138.0.0/20"),
    ],
)
def test_the_network_alone_may_mount_runs_where_no_folder_was(
    where: str, networks: str, tmp_path: Path
) -> None:
    cluster = cluster_of(where)
    [command] = [one for one in cluster["head_setup_commands"] if "exportfs" in one]
    (tmp_path / "ray_bootstrap_config.yaml").write_text(json.dumps(cluster))
    (tmp_path / "etc").mkdir()  # and no exports.d in it, as Debian ships it
    program(tmp_path, "sudo", SUDO)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {
        "HOME": str(tmp_path),
        "ELSEWHERE": str(tmp_path),
        "PATH": path,
        "PYTHONPATH": str(ROOT),
    }
    subprocess.run(["bash", "-c", command], env=os.environ | own, check=True, timeout=60)
    options = "(rw,sync,no_subtree_check)"
    expected = " ".join([f"{tmp_path}/runs", *(one + options for one in networks.split())])
    assert (tmp_path / "etc/exports.d/runs.exports").read_text() == expected + "\n"
    assert (tmp_path / "said").read_text() == "exportfs -ra\n"


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (None, "metadata.network is missing"),
        ("*", "10.0.0.0/16"),
        ("10.0.0.1/16", "host bits"),
        ("0.0.0.0/1", "wider than /8"),
    ],
)
def test_nobody_else_may(network: str | None, said: str) -> None:
    with pytest.raises(ClusterError, match=said):
        exports({"provider": {"type": "gcp"}, "metadata": {"network": network}})


def test_an_own_network_goes_before_that_of_the_cloud() -> None:
    found = exports({"provider": {"type": "aws"}, "metadata": {"network": "10.1.0.0/24"}})
    assert found.split()[1:] == ["10.1.0.0/24(rw,sync,no_subtree_check)"]
