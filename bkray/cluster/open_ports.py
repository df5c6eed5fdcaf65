"""What a cluster file opens to others: by the text of its commands, its options, its network.

What is not in the file (firewalls, security groups named by id, programs that an image starts)
cannot be seen here.
"""

import re
from collections.abc import Iterator, Mapping
from ipaddress import ip_network
from typing import Any

from bkray.cluster.cluster_file import leaves
from bkray.cluster.head import WIDEST_PREFIX, network_of
from bkray.errors import ClusterError

_LOOPBACK = {"127.0.0.1", "localhost", "::1", "[::1]"}
_WIDEST_V6 = 32
_SSH = (22, 22)
_HOSTS = (
    re.compile(r"--(?:dashboard-)?host[= ]\s*(\S+)"),
    re.compile(r"\bmlflow\b.*?\s-h[= ]?\s*(\S+)"),
    re.compile(r"\b(?:MLFLOW|RAY)_\w*HOST=(\S+)"),
    re.compile(r"(?<![\d.])(0\.0\.0\.0)(?![\d./])"),
    re.compile(r"(\[::\])"),
)
_PUBLISHES = re.compile(r"(?:^|\s)(?:-p|--publish)[= ]?\s*(\S+)|(?:^|\s)(-P|--publish-all)\b")
_OWN_PUBLISH = ("127.0.0.1:", "localhost:", "[::1]:")
_MODE = re.compile(r"\bRAY_AUTH_MODE=[\"']?([^\s;&|\"']*)|(?:\bunset|\s-u)\s+(RAY_AUTH_MODE)\b")


def served(cluster: Mapping[str, Any]) -> Iterator[str]:
    """Yield what serves on more than loopback, with its place in the file."""
    for place, text in leaves(cluster):
        found = [host.strip("\"';&|)") for one in _HOSTS for host in one.findall(str(text))]
        for host in dict.fromkeys(host for host in found if host not in _LOOPBACK):
            yield f"{place} serves on {host}: only 127.0.0.1 stays closed"
        if place.endswith("run_options"):
            yield from _published(place, str(text))


def _published(place: str, options: str) -> Iterator[str]:
    for port, every in _PUBLISHES.findall(options):
        if every or not port.startswith(_OWN_PUBLISH):
            yield f"{place} publishes {port or 'every port'}: write 127.0.0.1:PORT:PORT"


def let_in(cluster: Mapping[str, Any]) -> Iterator[str]:
    """Yield the rules that let a range wider than any private network in, but by ssh alone."""
    rules = (cluster["provider"].get("security_group") or {}).get("IpPermissions") or []
    for rule in rules:
        ports = (rule.get("FromPort", -1), rule.get("ToPort", -1))
        ranges = [one.get("CidrIp") for one in rule.get("IpRanges") or []]
        ranges += [one.get("CidrIpv6") for one in rule.get("Ipv6Ranges") or []]
        for one in ranges:
            if ports != _SSH and _is_wide(str(one)):
                yield (
                    f"provider.security_group opens ports {ports[0]} to {ports[1]} to everybody "
                    f"in {one}: at most /{WIDEST_PREFIX}, and only ssh to more"
                )


def _is_wide(text: str) -> bool:
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        return True
    return network.prefixlen < (WIDEST_PREFIX if network.version == 4 else _WIDEST_V6)


def mounted(cluster: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the network that may mount ``~/runs``."""
    given = (cluster.get("metadata") or {}).get("network")
    if given:
        try:
            network_of(str(given))
        except ClusterError as error:
            yield str(error)
    elif cluster["provider"]["type"] == "gcp":
        yield "metadata.network is missing: the range of addresses that may mount ~/runs"


def own_groups(cluster: Mapping[str, Any]) -> list[str]:
    """Return the security groups that the file names by id, whose rules are not in it."""
    found = [str(text) for _, text in leaves(cluster) if re.match(r"sg-\w", str(text))]
    return sorted(set(found))


def modes(cluster: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield every mode of Ray's authentication that the file sets, with its place."""
    for place, text in leaves(cluster):
        for mode, unset in _MODE.findall(str(text)):
            yield place, "" if unset else mode
