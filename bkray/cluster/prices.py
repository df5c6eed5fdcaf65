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


@dataclass(frozen=True, slots=True)
class Estimate:
    """US dollars per hour; an estimate.

    Attributes:
        idle: the head and the least number of workers, with their disks.
        worst: every worker that may come, with its disk.
        unknown: types of machines without a price; they count as 0.
        spot_at_demand: types that run on spot and count at their price on demand.
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
        ClusterError: the user's file holds anything but prices of 0 or more.
    """
    known: dict[str, Any] = dict(yaml.safe_load(_TABLE.read_text()).get(provider, {}))
    mine = (read_yaml(own).get(provider) or {}) if own else {}
    if not isinstance(mine, Mapping):
        raise ClusterError(f"{own}: {provider} must hold on_demand and spot, as in {_TABLE.name}")
    for kind in ("on_demand", "spot"):
        prices = dict(known.get(kind, {})) | dict(mine.get(kind) or {})
        for machine, price in prices.items():
            if isinstance(price, bool) or not isinstance(price, int | float) or not price >= 0:
                raise ClusterError(f"{own}: {provider}.{kind}.{machine} must be 0 or more")
        known[kind] = prices
    rest = {key: value for key, value in mine.items() if key not in ("on_demand", "spot")}
    return {**known, **rest}


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

    heads = [group for group in groups if group.head]
    workers = [group for group in groups if not group.head]
    head = sum(map(price, heads))
    every = sorted((price(one) for one in workers for _ in range(one.at_most)), reverse=True)
    known = on_demand.keys() | spot.keys()
    return Estimate(
        idle=head + sum(price(one) * one.at_least for one in workers),
        worst=head + sum(every[:max_workers]),
        unknown=tuple(sorted({group.machine for group in groups} - known)),
        spot_at_demand=tuple(
            sorted({one.machine for one in workers if one.spot and one.machine not in spot})
        ),
        seen=f"{prices.get('region', 'unknown region')}, {prices.get('seen', 'unknown day')}",
    )
