"""What a cluster may cost in an hour, from a small table that the user can override."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bkray.cluster.cluster_file import Group, read_yaml
from bkray.errors import ClusterError

_TABLE = Path(__file__).with_name("prices.yaml")
_HOURS_A_MONTH = 730.0
_PROVIDERS = ("aws", "gcp")
_WORDS = ("on_demand", "spot", "region", "seen", "disk_gib_month")


@dataclass(frozen=True, slots=True)
class Estimate:
    """US dollars per hour; an estimate.

    Attributes:
        idle: the head and the least number of workers, with their disks.
        worst: every worker that may come, with its disk.
        unknown: types of machines without a price; they count as 0, so the rest is a lower bound.
        spot_at_demand: types that run on spot and count at their price on demand, which is known.
        seen: where and when the prices were read.
    """

    idle: float
    worst: float
    unknown: tuple[str, ...]
    spot_at_demand: tuple[str, ...]
    seen: str


def table(provider: str, own: Path | None = None) -> dict[str, Any]:
    """Return the prices of a provider, the user's over ours; empty where neither has any.

    Raises:
        ClusterError: the user's file does not name the provider, or holds an unknown word or
            anything but prices of 0 or more.
    """
    known: dict[str, Any] = dict(yaml.safe_load(_TABLE.read_text()).get(provider, {}))
    mine = _own(provider, own) if own else {}
    for kind in ("on_demand", "spot"):
        prices = dict(known.get(kind, {})) | dict(mine.get(kind) or {})
        for machine, price in prices.items():
            if isinstance(price, bool) or not isinstance(price, int | float) or not price >= 0:
                raise ClusterError(f"{own}: {provider}.{kind}.{machine} must be 0 or more")
        known[kind] = prices
    rest = {key: value for key, value in mine.items() if key not in ("on_demand", "spot")}
    return {**known, **rest}


def _own(provider: str, own: Path) -> Mapping[str, Any]:
    """Return what the user's file says of a provider; a word that would do nothing is an error."""
    found = read_yaml(own)
    if unknown := sorted(map(str, found.keys() - _PROVIDERS)):
        said = f"{', '.join(unknown)} is no provider; begin with one of {', '.join(_PROVIDERS)}"
        raise ClusterError(f"{own}: {said}, as {_TABLE.name} does")
    if provider not in found:
        raise ClusterError(f"{own} says nothing of {provider}, where this cluster runs")
    mine = found[provider]
    if not isinstance(mine, Mapping) or not all(
        isinstance(mine.get(kind) or {}, Mapping) for kind in ("on_demand", "spot")
    ):
        raise ClusterError(f"{own}: {provider} must hold on_demand and spot, as in {_TABLE.name}")
    if unknown := sorted(map(str, mine.keys() - set(_WORDS))):
        said = f"{provider}.{', '.join(unknown)} is not known; there are {', '.join(_WORDS)}"
        raise ClusterError(f"{own}: {said}")
    return mine


def estimate(groups: Sequence[Group], max_workers: int, prices: Mapping[str, Any]) -> Estimate:
    """Estimate an hour of a cluster.

    Args:
        groups: of machines; one of them is the head.
        max_workers: of the whole cluster; where it is below the sum over groups, the dearest run.
        prices: as ``table`` returns them.
    """
    gib_hour = float(prices.get("disk_gib_month", 0.0)) / _HOURS_A_MONTH
    spot, on_demand = prices.get("spot", {}), prices.get("on_demand", {})

    def price(group: Group) -> float:
        machine = on_demand.get(group.machine, 0.0)
        if group.spot:
            machine = spot.get(group.machine, machine)
        return float(machine) + group.disk_gib * gib_hour

    def is_known(group: Group) -> bool:
        return group.machine in on_demand or (group.spot and group.machine in spot)

    heads = [group for group in groups if group.head]
    workers = [group for group in groups if not group.head]
    head = sum(map(price, heads))
    every = sorted((price(one) for one in workers for _ in range(one.at_most)), reverse=True)
    return Estimate(
        idle=head + sum(price(one) * one.at_least for one in workers),
        worst=head + sum(every[:max_workers]),
        unknown=tuple(sorted({one.machine for one in groups if not is_known(one)})),
        spot_at_demand=tuple(
            sorted(
                {
                    one.machine
                    for one in workers
                    if one.spot and one.machine in on_demand.keys() - spot.keys()
                }
            )
        ),
        seen=f"{prices.get('region', 'unknown region')}, {prices.get('seen', 'unknown day')}",
    )
