"""A cluster file of Ray as this package reads it: its schema, its groups of machines, its words.

Ray is imported where its own checks are asked for, and only then.
"""

import io
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bkray.errors import ClusterError

UNWRITTEN = "WRITE-YOUR-"
"""Begins whatever the user has to write into a file of ours."""


@dataclass(frozen=True, slots=True)
class Group:
    """Machines of one kind.

    Attributes:
        machine: the provider's type, such as ``g6.xlarge``; empty for machines of one's own.
        spot: the provider may take them away, and they cost less.
        at_least: how many of them there always are.
        at_most: how many of them there may be.
        disk_gib: of one machine, all its disks together.
    """

    name: str
    head: bool
    machine: str
    spot: bool
    at_least: int
    at_most: int
    gpus: int
    disk_gib: int


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML file that holds one mapping, read by the safe loader.

    Raises:
        ClusterError: it is not there, no YAML, or no mapping.
    """
    try:
        found = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ClusterError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ClusterError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise ClusterError(f"{path} holds no mapping of names to values")
    return found


def prepare(cluster: Mapping[str, Any]) -> dict[str, Any]:
    """Return the file as Ray completes it, after Ray's own schema has passed it.

    Raises:
        ClusterError: it does not pass.
    """
    import click
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    if not isinstance(cluster.get("provider"), Mapping) or "type" not in cluster["provider"]:
        raise ClusterError("provider.type is missing: aws, gcp or local")
    logging.getLogger("ray.autoscaler").setLevel(logging.WARNING)
    said = io.StringIO()  # Ray says there why it aborts
    try:
        with redirect_stdout(said), redirect_stderr(said):
            prepared: dict[str, Any] = prepare_config(dict(cluster))
            validate_config(prepared)
    except jsonschema.ValidationError as error:
        place = ".".join(map(str, error.absolute_path))
        raise ClusterError(f"{place + ': ' if place else ''}{error.message}") from None
    except click.ClickException:
        raise ClusterError(_plain(said.getvalue())) from None
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise ClusterError(str(error)) from None
    except (KeyError, TypeError, AttributeError) as error:  # Ray reads before it validates
        raise ClusterError(f"Ray cannot read it: {error!r}") from None
    return prepared


def _plain(said: str) -> str:
    """Return what Ray's logger said without time, level and colours."""
    words = re.sub(r"\x1b\[\d+m", "", said)
    return " ".join(re.sub(r"^.*? -- ", "", words).split())


def groups(prepared: Mapping[str, Any]) -> list[Group]:
    """Return the groups of machines of a file that ``prepare`` completed."""
    head = prepared["head_node_type"]
    kinds = prepared["available_node_types"]
    return [_group(name, kind, name == head) for name, kind in kinds.items()]


def _group(name: str, kind: Mapping[str, Any], head: bool) -> Group:
    node = kind["node_config"]
    market = node.get("InstanceMarketOptions", {}).get("MarketType")
    model = node.get("scheduling", {}).get("provisioningModel")
    volumes = node.get("BlockDeviceMappings", [])
    disks = [disk.get("Ebs", {}).get("VolumeSize", 0) for disk in volumes]
    disks += [
        int(disk.get("initializeParams", {}).get("diskSizeGb", 0))
        for disk in node.get("disks", [])
    ]
    return Group(
        name=name,
        head=head,
        machine=str(node.get("InstanceType", node.get("machineType", ""))),
        spot=market == "spot" or model == "SPOT",
        at_least=0 if head else int(kind.get("min_workers", 0)),
        at_most=0 if head else int(kind.get("max_workers", 0)),
        gpus=int(kind.get("resources", {}).get("GPU", 0)),
        disk_gib=sum(disks),
    )


def commands(cluster: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield every command that a node will run, with the place of its list."""
    for place, text in leaves(cluster):
        if place.endswith("_commands") and text is not None:
            yield place, str(text)


def unwritten(cluster: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what the user has not written yet, with its place in the file."""
    for place, text in leaves(cluster):
        if isinstance(text, str) and UNWRITTEN in text:
            yield place, text


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield everything in the file that holds nothing else, with its place."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from leaves(inner, f"{place}.{name}" if place else str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, place)
    else:
        yield place, value
