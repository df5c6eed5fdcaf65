"""What a cluster file opens is an error of ``bkray cluster check``, wherever in it that lies."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from bkray.cluster.check import Finding, _ports, _token, _versions

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "cluster.yaml").read_text()


def looked(change: Mapping[str, Any]) -> list[Finding]:
    """What is said of ports and token once ``change``, by place, is in ``cluster.yaml``."""
    cluster = yaml.safe_load(TEXT)
    for place, value in change.items():
        *outer, name = place.split(".")
        inner = cluster
        for one in outer:
            inner = inner.setdefault(one, {})
        inner[name] = [*inner.get(name, []), *value] if isinstance(value, list) else value
    return [*_ports(cluster), *_token(cluster)]


def said(change: Mapping[str, Any], what: str, level: str) -> list[str]:
    found = looked(change)
    return [one.text for one in found if (one.what, one.level) == (what, level)]


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("head_start_ray_commands", "mlflow server -h 0.0.0.0 --port 5000 &"),
        ("head_start_ray_commands", "mlflow ui -h10.0.0.7"),
        ("head_start_ray_commands", "MLFLOW_HOST=0.0.0.0 mlflow server"),
        ("head_start_ray_commands", "mlflow server --host '0.0.0.0'"),
        ("head_start_ray_commands", "gunicorn --bind 0.0.0.0:80 app"),
        ("head_start_ray_commands", "serve --bind [::]:80"),
        ("available_node_types.gpu.worker_setup_commands", "mlflow server --host 0.0.0.0"),
        ("docker.run_options", "-p 0.0.0.0:5000:5000"),
        ("docker.head_run_options", "--publish=5000:5000"),
        ("docker.worker_run_options", "-P"),
    ],
)
def test_what_serves_others_is_an_error(place: str, text: str) -> None:
    errors = said({place: [text]}, "ports", "error")
    assert errors
    assert all(error.startswith(place) for error in errors)
    assert not said({place: [text]}, "ports", "ok")


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("head_start_ray_commands", "mlflow server --host=127.0.0.1"),
        ("head_start_ray_commands", "df -h /; mkdir -p 5000; mlflow --help"),
        ("docker.run_options", "-p 127.0.0.1:5000:5000"),
        ("docker.run_options", "--shm-size 10.0.0.0g"),
    ],
)
def test_what_serves_loopback_alone_is_none(place: str, text: str) -> None:
    assert said({place: [text]}, "ports", "error") == []


def rule(first: int, last: int, *ranges: str) -> dict[str, Any]:
    everybody = [{"CidrIp": one} for one in ranges if ":" not in one]
    v6 = [{"CidrIpv6": one} for one in ranges if ":" in one]
    return {"FromPort": first, "ToPort": last, "IpRanges": everybody, "Ipv6Ranges": v6}


@pytest.mark.parametrize(
    ("one", "wide"),
    [
        (rule(0, 65535, "0.0.0.0/1", "128.0.0.0/1"), 2),
        (rule(8265, 8265, "16.0.0.0/7"), 1),
        (rule(8265, 8265, "::/1", "2000::/3"), 2),
        (rule(8265, 8265, "anywhere"), 1),
        (rule(8265, 8265, "10.0.0.0/8", "fd00::/48"), 0),
        (rule(22, 22, "0.0.0.0/0", "::/0"), 0),
        (rule(22, 23, "0.0.0.0/0"), 1),
    ],
)
def test_a_range_wider_than_any_private_one_gets_ssh_alone(one: dict[str, Any], wide: int) -> None:
    change = {"provider.security_group": {"IpPermissions": [one]}}
    assert len(said(change, "ports", "error")) == wide


@pytest.mark.parametrize(
    "text",
    ["RAY_AUTH_MODE=disabled ray start", "unset RAY_AUTH_MODE; ray start", 'RAY_AUTH_MODE=""'],
)
def test_no_command_goes_without_the_token(text: str) -> None:
    errors = said({"worker_start_ray_commands": [text]}, "token", "error")
    assert any(error.startswith("worker_start_ray_commands sets RAY_AUTH_") for error in errors)


@pytest.mark.parametrize("network", ["0.0.0.0/1", "*"])
def test_the_network_that_mounts_runs_is_looked_at(network: str) -> None:
    [error] = said({"metadata.network": network}, "ports", "error")
    assert error.startswith("metadata.network=")


def test_on_google_cloud_the_network_must_be_there() -> None:
    assert said({"provider.type": "gcp"}, "ports", "error")


def test_groups_of_ones_own_are_told_not_to_be_looked_at() -> None:
    place = "available_node_types.head.node_config.SecurityGroupIds"
    [note] = said({place: ["sg-0123"]}, "ports", "note")
    assert note.startswith("sg-0123: ")
    assert "not looked at" in note


def test_what_is_right_is_told_by_what_was_looked_at() -> None:
    assert said({}, "ports", "error") == []
    [ok] = said({}, "ports", "ok")
    assert ok.startswith("found nothing open in commands, run_options")


def test_a_comment_among_the_pins_is_no_error(tmp_path: Path) -> None:
    pins = tmp_path / "constraints.txt"
    text = (ROOT / "constraints.txt").read_text()
    pins.write_text(f"# what runs everywhere\n\n{text.replace('ray==', 'ray == ')}x==1 # why\n")
    [found] = [one for one in _versions({"file_mounts": {"there": str(pins)}})]
    assert found.level == "ok"
