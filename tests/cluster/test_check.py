"""``bkray cluster check`` finds what would go wrong, and only that."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bkray.cli import app
from bkray.cluster.check import Checked, check
from bkray.cluster.cluster_file import Group, prepare
from bkray.cluster.prices import estimate, table
from bkray.cluster.provider import _kept_disks
from bkray.errors import ClusterError

ROOT = Path(__file__).parents[2]
FILES = ["cluster.yaml", "deploy/cluster-gcp.yaml", "deploy/cluster-local.yaml"]
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the checkout's folder, with a token in a home of one's own."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    token = tmp_path / ".ray/auth_token"
    token.parent.mkdir()
    token.write_text("0" * 64)
    token.chmod(0o600)


def written(where: str, tmp_path: Path, change: Change = lambda cluster: None) -> Path:
    """A copy of a file of ours in which the user has written what is asked for."""
    text = (ROOT / where).read_text()
    cluster = yaml.safe_load(text.replace("WRITE-YOUR-", "my-").replace("my-BUCKET", "a-bucket"))
    change(cluster)
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(cluster))
    return path


def errors(checked: Checked) -> list[str]:
    return [f"{one.what}: {one.text}" for one in checked.findings if one.level == "error"]


@pytest.mark.parametrize("where", FILES)
def test_a_file_of_ours_is_right_once_it_is_written(where: str, tmp_path: Path) -> None:
    checked = check(written(where, tmp_path))
    assert errors(checked) == []
    assert checked.ok


@pytest.mark.parametrize("where", FILES)
def test_a_file_of_ours_says_what_is_to_be_written_and_where(where: str) -> None:
    found = errors(check(ROOT / where))
    text = (ROOT / where).read_text()
    assert len(found) >= len({line for line in text.splitlines() if "WRITE-YOUR-" in line}) > 0
    assert all("write your own into the cluster file" in line for line in found)


def open_port(cluster: dict[str, Any]) -> None:
    everybody = [{"CidrIp": "0.0.0.0/0"}]
    rule = {"FromPort": 8265, "ToPort": 8265, "IpProtocol": "tcp", "IpRanges": everybody}
    cluster["provider"]["security_group"] = {"IpPermissions": [rule]}


def replaced(old: str, new: str) -> Change:
    def change(cluster: dict[str, Any]) -> None:
        text = json.dumps(cluster)
        assert old in text
        cluster.update(json.loads(text.replace(old, new)))

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(setup_comands=[]), "schema: .*setup_comands"),
        (lambda c: c["provider"].pop("type"), "schema: provider.type is missing"),
        (lambda c: c.update(head_node_type="hed"), "schema: .*head_node_type"),
        (lambda c: c["metadata"].update(bucket="s3://mine/x"), "bucket: .*without s3://"),
        (lambda c: c.pop("metadata"), "bucket: .*missing"),
        (open_port, "ports: .*8265 to 8265 to everybody"),
        (replaced("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"), "ports: .*0.0.0.0"),
        (
            replaced("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled"),
            "token: setup_commands sets .*=disabled",
        ),
        (replaced("RAY_AUTH_MODE=token", ""), "token: no setup command"),
        (lambda c: c["file_mounts"].pop("~/.ray/auth_token"), "token: file_mounts"),
        (lambda c: c["file_mounts"].update({"~/x": "no/such"}), "files: .*no/such is not here"),
        (lambda c: c["file_mounts"].pop("~/bkray/constraints.txt"), "versions: .*no constraints"),
        (
            lambda c: c["available_node_types"]["gpu"]["node_config"].update(ImageId="ami-1"),
            "image: the groups boot from 2 images",
        ),
        (
            lambda c: c.update(docker={"image": "a/b:latest", "container_name": "c"}),
            "image: .*tag",
        ),
        (lambda c: c.pop("idle_timeout_minutes"), "end: idle_timeout_minutes is missing"),
    ],
)
def test_what_would_go_wrong_is_an_error(change: Change, said: str, tmp_path: Path) -> None:
    checked = check(written("cluster.yaml", tmp_path, change))
    assert not checked.ok
    [only] = errors(checked)
    assert re.match(said, only), only


def test_another_version_there_is_an_error(tmp_path: Path) -> None:
    pins = (ROOT / "constraints.txt").read_text().replace("ray==2.", "ray==1.")
    (tmp_path / "constraints.txt").write_text(pins)
    other = str(tmp_path / "constraints.txt")
    path = written(
        "cluster.yaml",
        tmp_path,
        lambda c: c["file_mounts"].update({"~/bkray/constraints.txt": other}),
    )
    [said] = errors(check(path))
    assert said.startswith("versions: ray is 2.")


def test_a_token_must_be_there_and_ones_own(tmp_path: Path) -> None:
    path, token = written("cluster.yaml", tmp_path), tmp_path / ".ray/auth_token"
    token.chmod(0o644)
    assert "chmod 600" in errors(check(path))[0]
    token.unlink()
    assert "ray get-auth-token --generate" in errors(check(path))[0]


def test_the_price_is_that_of_every_machine_that_may_come(tmp_path: Path) -> None:
    price = check(written("cluster.yaml", tmp_path)).price
    assert price is not None
    disk = 150 * 0.08 / 730
    assert price.idle == pytest.approx(0.2016 + disk)
    workers = 2 * (0.4032 + disk) + 2 * (0.8048 + disk)
    assert price.worst == pytest.approx(price.idle + workers)
    assert price.unknown == ()
    assert price.spot_at_demand == ("g6.xlarge", "m7i.2xlarge")


def groups_of(**knobs: Any) -> list[Group]:
    base: dict[str, Any] = {
        "name": "x",
        "head": False,
        "machine": "m",
        "spot": False,
        "at_least": 0,
        "at_most": 3,
        "gpus": 0,
        "disk_gib": 0,
    }
    head = {"name": "head", "head": True, "machine": "h", "at_most": 0}
    return [Group(**{**base, **head}), Group(**{**base, **knobs})]


def test_workers_that_always_run_are_in_the_price_of_an_idle_hour() -> None:
    prices = {"on_demand": {"h": 1.0, "m": 10.0}, "spot": {"m": 4.0}}
    dear = estimate(groups_of(at_least=2), 3, prices)
    assert (dear.idle, dear.worst) == (21.0, 31.0)
    cheap = estimate(groups_of(spot=True), 2, prices)  # max_workers binds
    assert (cheap.idle, cheap.worst) == (1.0, 9.0)
    assert estimate(groups_of(machine="new"), 3, prices).unknown == ("new",)


def test_own_prices_go_over_ours(tmp_path: Path) -> None:
    own = tmp_path / "prices.yaml"
    own.write_text("aws: {spot: {g6.xlarge: 0.3}, on_demand: {new: 2}}")
    prices = table("aws", own)
    assert prices["spot"] == {"g6.xlarge": 0.3}
    assert (prices["on_demand"]["new"], prices["on_demand"]["m7i.xlarge"]) == (2, 0.2016)
    assert table("nobody") == {"on_demand": {}, "spot": {}}


@pytest.mark.parametrize(
    "text",
    [
        "aws: {spot: {x: -1}}",
        "aws: {spot: {x: dear}}",
        "aws: 3",
        "aws: {spot: 3}",
        "aws: {on-demand: {x: 1}}",
        "on_demand: {x: 1}",
        "gcp: {on_demand: {x: 1}}",
    ],
)
def test_a_price_that_is_none_is_an_error(text: str, tmp_path: Path) -> None:
    own = tmp_path / "prices.yaml"
    own.write_text(text)
    with pytest.raises(ClusterError, match=r"aws"):
        table("aws", own)


def test_json_says_it_all_and_the_status_is_two(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cluster", "check", "cluster.yaml", "--json"]
    assert app(words, standalone_mode=False) == 2
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is False
    assert {"schema", "bucket", "versions", "image", "ports", "token", "price", "end"} <= {
        finding["what"] for finding in said["findings"]
    }


def test_up_starts_nothing_before_the_errors_are_mended() -> None:
    with pytest.raises(ClusterError, match="nothing was started"):
        app(["cluster", "up", "cluster.yaml", "--yes"], standalone_mode=False)


def test_nobody_is_charged_without_a_yes(tmp_path: Path) -> None:
    path = written("cluster.yaml", tmp_path)
    for verb in ("up", "down"):
        with pytest.raises(ClusterError, match="give --yes"):
            app(["cluster", verb, str(path)], standalone_mode=False)


@pytest.mark.parametrize("text", ["- a list", "a: [", "!!python/object:os.system {}"])
def test_a_file_that_is_no_cluster_is_one_message(text: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    words = [sys.executable, "-m", "bkray.cli", "cluster", "check", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {path}")
    assert "Traceback" not in done.stderr


def test_ray_says_why_it_cannot_read_a_file() -> None:
    with pytest.raises(ClusterError, match=r"^Please supply a `head_ip`"):
        prepare({"cluster_name": "x", "provider": {"type": "local"}})


def test_prices_for_machines_of_ones_own_are_an_error(tmp_path: Path) -> None:
    path = written("deploy/cluster-local.yaml", tmp_path)
    with pytest.raises(ClusterError, match=r"--prices .*does nothing"):
        check(path, tmp_path / "no-such.yaml")


def test_a_machine_without_a_price_makes_the_rest_a_lower_bound(tmp_path: Path) -> None:
    change = replaced("g6.xlarge", "p4de.24xlarge")
    said = [one.text for one in check(written("cluster.yaml", tmp_path, change)).findings]
    [line] = [text for text in said if text.startswith("estimate")]
    assert line.count("at least") == 2
    [spot] = [text for text in said if "as if on demand" in text]
    assert "p4de" not in spot
    assert any("no price known of p4de.24xlarge" in text for text in said)
    assert estimate(groups_of(), 3, {"spot": {"m": 1.0, "h": 1.0}}).unknown == ("h", "m")


def test_verify_takes_a_file_or_an_address(tmp_path: Path) -> None:
    words = ["cluster", "verify", str(tmp_path / "x.yaml"), "--address", "auto"]
    with pytest.raises(ClusterError, match="not both"):
        app(words, standalone_mode=False)


def test_a_disk_of_google_cloud_that_stays_is_named(tmp_path: Path) -> None:
    cluster = yaml.safe_load(written("deploy/cluster-gcp.yaml", tmp_path).read_text())
    assert [name.rpartition("/")[2] for name in _kept_disks(cluster)] == ["bkray-runs"]
