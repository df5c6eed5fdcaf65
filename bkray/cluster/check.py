"""``bkray cluster check``: what is wrong with a cluster file, and what it would cost.

Each look is a function of the file and returns findings; nothing is asked of a cloud.
"""

import os
import platform
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from bkray.cluster import open_ports, prices
from bkray.cluster.cluster_file import (
    UNWRITTEN,
    Group,
    groups,
    prepare,
    read_yaml,
    unwritten,
)
from bkray.errors import ClusterError

_PINNED = ("ray", "torch", "mlflow", "optuna")
_PIN = re.compile(r"(?m)^([\w.-]+) *== *([^\s;#]+)")
_TOKEN_FILE = "~/.ray/auth_token"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the answer; an ``error`` keeps the cluster from being started."""

    what: str
    level: Literal["ok", "note", "error"]
    text: str


@dataclass(frozen=True, slots=True)
class Checked:
    """What ``check`` found."""

    findings: tuple[Finding, ...]
    price: prices.Estimate | None

    @property
    def ok(self) -> bool:
        """Nothing is in the way of a start."""
        return all(finding.level != "error" for finding in self.findings)

    def plain(self) -> dict[str, Any]:
        """Return it as JSON knows it."""
        found = [asdict(finding) for finding in self.findings]
        return {"ok": self.ok, "findings": found, "price": self.price and asdict(self.price)}


def check(path: Path, own_prices: Path | None = None) -> Checked:
    """Check a cluster file before anything is started, from the folder it will be started in.

    Raises:
        ClusterError: a file is not there or is no YAML.
    """
    cluster = read_yaml(path)
    try:
        prepared = prepare(cluster)
    except ClusterError as error:
        return Checked((Finding("schema", "error", str(error)),), None)
    found = [Finding("schema", "ok", "Ray's own schema")]
    for look in (_unwritten, _mounts, _versions, _image, _ports, _token):
        found += look(cluster)
    machines, provider = groups(prepared), cluster["provider"]["type"]
    if provider == "local":
        if own_prices:
            raise ClusterError(
                f"--prices {own_prices} does nothing: nobody charges local machines"
            )
        found.append(Finding("price", "ok", "your own machines; nobody is charged by the hour"))
        return Checked((*found, *_end(cluster, machines)), None)
    costs = prices.estimate(
        machines, int(prepared["max_workers"]), prices.table(provider, own_prices)
    )
    return Checked((*found, *_price(costs, cluster), *_end(cluster, machines)), costs)


def _unwritten(cluster: Mapping[str, Any]) -> Iterator[Finding]:
    missing = list(unwritten(cluster))
    for place, value in missing:
        what = "bucket" if place == "metadata.bucket" else "placeholder"
        yield Finding(
            what, "error", f"{place} is still {value}: write your own into the cluster file"
        )
    bucket = (cluster.get("metadata") or {}).get("bucket")
    if bucket and UNWRITTEN not in str(bucket):
        legal = re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", str(bucket))
        said = "must be 3 to 63 of a-z, 0-9, . and -, without s3:// or gs:// and without a path"
        yield (
            Finding("bucket", "ok", f"{bucket}; whether it is there and yours, ray up will show")
            if legal
            else Finding("bucket", "error", f"metadata.bucket={bucket} {said}")
        )
    elif not bucket and cluster["provider"]["type"] != "local":
        yield Finding(
            "bucket", "error", "metadata.bucket is missing: where MLflow keeps artifacts"
        )


def _mounts(cluster: Mapping[str, Any]) -> Iterator[Finding]:
    local = [str(path) for path in (cluster.get("file_mounts") or {}).values()]
    for path in local:
        if path != _TOKEN_FILE and not Path(path).expanduser().exists():
            yield Finding(
                "files", "error", f"file_mounts: {path} is not here: go to the checkout's folder"
            )


def _versions(cluster: Mapping[str, Any]) -> Iterator[Finding]:
    mounts = (cluster.get("file_mounts") or {}).values()
    pins = next((Path(path) for path in mounts if Path(path).name == "constraints.txt"), None)
    if pins is None or not pins.exists():
        yield Finding("versions", "error", "file_mounts brings no constraints.txt to the nodes")
        return
    there = dict(_PIN.findall(pins.read_text()))
    here = {name: version(name).partition("+")[0] for name in _PINNED}
    for name in _PINNED:
        if here[name] != there.get(name):
            yield Finding(
                "versions", "error", f"{name} is {here[name]} here, {there.get(name)} there"
            )
    if all(here[name] == there.get(name) for name in _PINNED):
        said = ", ".join(f"{name} {here[name]}" for name in _PINNED)
        yield Finding("versions", "ok", f"here and there: {said}")
    python = str((cluster.get("metadata") or {}).get("python", ""))
    if python and not f"{platform.python_version()}.".startswith(f"{python}."):
        yield Finding(
            "versions",
            "note",
            f"Python is {platform.python_version()} here, {python} there: submit by ray job "
            "submit, not by ray://; the default corpus, and so trial ids, differ",
        )


def _image(cluster: Mapping[str, Any]) -> Iterator[Finding]:
    kinds = (cluster.get("available_node_types") or {}).values()
    nodes = [kind["node_config"] for kind in kinds]
    images = {str(node.get("ImageId", _boot_image(node))) for node in nodes}
    docker = (cluster.get("docker") or {}).get("image")
    if docker and (":" not in docker or docker.endswith(":latest")):
        yield Finding("image", "error", f"docker.image={docker}: name a tag, latest moves")
    if not nodes:
        yield Finding("image", "ok", "what your machines run; bkray cluster verify compares them")
    elif len(images) > 1 or "" in images:
        yield Finding("image", "error", f"the groups boot from {len(images)} images: name one")
    else:
        yield Finding("image", "ok", f"every node: {images.pop()}")


def _boot_image(node: Mapping[str, Any]) -> str:
    boot = [disk for disk in node.get("disks", []) if disk.get("boot")]
    return str(boot[0].get("initializeParams", {}).get("sourceImage", "")) if boot else ""


def _ports(cluster: Mapping[str, Any]) -> Iterator[Finding]:
    looks = (open_ports.served, open_ports.let_in, open_ports.mounted)
    bad = [text for look in looks for text in look(cluster)]
    yield from (Finding("ports", "error", text) for text in bad)
    own = open_ports.own_groups(cluster)
    if own:
        text = f"{', '.join(own)}: rules of your own groups are not in the file, not looked at"
        yield Finding("ports", "note", text)
    if not bad:
        where = "commands, run_options, provider.security_group and metadata.network"
        yield Finding("ports", "ok", f"found nothing open in {where}; nothing else was looked at")


def _token(cluster: Mapping[str, Any]) -> Iterator[Finding]:
    modes = list(open_ports.modes(cluster))
    others = [f"{place} sets RAY_AUTH_MODE={mode}" for place, mode in modes if mode != "token"]
    for other in others:
        yield Finding("token", "error", f"{other}: with anything but token Ray asks nobody")
    if ("setup_commands", "token") not in modes and not others:
        yield Finding("token", "error", "no setup command sets RAY_AUTH_MODE=token")
    if _TOKEN_FILE not in (cluster.get("file_mounts") or {}):
        yield Finding("token", "error", f"file_mounts brings no {_TOKEN_FILE} to the nodes")
    own = Path(_TOKEN_FILE).expanduser()
    if not own.exists():
        yield Finding(
            "token",
            "error",
            f"{own} is missing; make it: umask 077; ray get-auth-token --generate",
        )
    elif stat.S_IMODE(own.stat().st_mode) & 0o077:
        yield Finding("token", "error", f"others may read {own}: chmod 600 {own}")
    elif os.environ.get("RAY_AUTH_MODE") != "token":
        yield Finding(
            "token", "note", "ray job submit from here needs: export RAY_AUTH_MODE=token"
        )
    else:
        yield Finding("token", "ok", f"{own}, read by you alone")


def _price(costs: prices.Estimate, cluster: Mapping[str, Any]) -> Iterator[Finding]:
    if costs.unknown:
        names = ", ".join(costs.unknown)
        yield Finding("price", "note", f"no price known of {names}: give a table by --prices")
    least = "at least " if costs.unknown else ""
    if costs.worst > 0:
        yield Finding(
            "price",
            "note",
            f"estimate: {least}{costs.idle:.2f} $ per hour while no work waits, "
            f"{least}{costs.worst:.2f} with all workers "
            f"(prices: {costs.seen}; taxes, traffic, volume and bucket not in it)",
        )
    if costs.spot_at_demand and costs.worst > 0:
        yield Finding(
            "price",
            "note",
            f"{', '.join(costs.spot_at_demand)} on spot count as if on demand: spot costs less",
        )


def _end(cluster: Mapping[str, Any], machines: list[Group]) -> Iterator[Finding]:
    if cluster["provider"]["type"] == "local":
        yield Finding("end", "note", "bkray cluster down stops Ray on the machines")
        return
    minutes = cluster.get("idle_timeout_minutes")
    if minutes is None:
        yield Finding("end", "error", "idle_timeout_minutes is missing: say when workers go")
    always = [group.name for group in machines if group.at_least]
    keeps = f"; of {', '.join(always)} some stay all the time" if always else ""
    yield Finding(
        "end",
        "note",
        f"your account pays. A worker ends {minutes} idle minutes after its last work{keeps}; the "
        "head goes on until bkray cluster down. The volume of ~/runs and the bucket stay and cost "
        "until you delete them",
    )
