"""``bkray cluster up`` and ``down``: Ray's own commands, and what the provider says afterwards.

The provider is asked through Ray's node provider, which is private to Ray: seen with Ray 2.60.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bkray.cluster.cluster_file import prepare, read_yaml
from bkray.cluster.head import volumes_of
from bkray.errors import ClusterError


@dataclass(frozen=True, slots=True)
class Left:
    """What is there after ``down``.

    Attributes:
        machines: of the cluster, that the provider has not ended; should be none.
        volumes: that stay and cost, by design, each with its size.
        bucket: that stays and costs, by design; none where the file names none.
    """

    machines: tuple[str, ...]
    volumes: tuple[str, ...]
    bucket: str | None


def up(path: Path) -> None:
    """Start the cluster, or bring a running one up to date: Ray is restarted, what runs ends.

    Raises:
        ClusterError: the provider or a node refused.
    """
    from ray.autoscaler import sdk

    with _rays_errors("ray up"):
        sdk.create_or_update_cluster(str(path))


def running_head(cluster: Mapping[str, Any]) -> str | None:
    """Return the machine that is the head of a cluster already, ``None`` where there is none.

    Raises:
        ClusterError: the provider does not answer.
    """
    from ray.autoscaler._private.providers import _get_node_provider
    from ray.autoscaler.tags import NODE_KIND_HEAD, TAG_RAY_NODE_KIND

    provider, name = prepare(cluster)["provider"], str(cluster["cluster_name"])
    with _rays_errors("the provider"):
        nodes = _get_node_provider(provider, name, use_cache=False)
        heads = nodes.non_terminated_nodes({TAG_RAY_NODE_KIND: NODE_KIND_HEAD})
    return str(heads[0]) if heads else None


def down(path: Path) -> Left:
    """End every machine of the cluster, and ask the provider what is left.

    Raises:
        ClusterError: the provider refused, or machines are left.
    """
    from ray.autoscaler import sdk

    with _rays_errors("ray down"):
        sdk.teardown_cluster(str(path))
    left = remaining(read_yaml(path))
    if left.machines:
        raise ClusterError(
            f"{len(left.machines)} machines are left and cost: {', '.join(left.machines)}; "
            "run bkray cluster down again, or end them by hand"
        )
    return left


def remaining(cluster: Mapping[str, Any]) -> Left:
    """Ask the provider what there is of a cluster.

    Raises:
        ClusterError: the provider does not answer.
    """
    from ray.autoscaler._private.providers import _get_node_provider

    provider, name = prepare(cluster)["provider"], str(cluster["cluster_name"])
    with _rays_errors("the provider"):
        nodes = _get_node_provider(provider, name, use_cache=False).non_terminated_nodes({})
        volumes = (*_volumes(provider, name), *_kept_disks(cluster))
    bucket = (cluster.get("metadata") or {}).get("bucket")
    return Left(tuple(nodes), volumes, bucket and str(bucket))


def _volumes(provider: Mapping[str, Any], name: str) -> tuple[str, ...]:
    if provider["type"] != "aws":
        return ()
    import boto3

    ec2 = boto3.client("ec2", region_name=provider["region"])
    return tuple(f"{one['VolumeId']} ({one['Size']} GiB)" for one in volumes_of(ec2, name))


def _kept_disks(cluster: Mapping[str, Any]) -> Iterator[str]:
    """Yield the disks of Google Cloud that the file attaches and that stay, by name."""
    for kind in (cluster.get("available_node_types") or {}).values():
        for disk in (kind.get("node_config") or {}).get("disks") or []:
            if disk.get("source") and not disk.get("autoDelete"):
                yield str(disk["source"])


@contextmanager
def _rays_errors(what: str) -> Iterator[None]:
    """Turn what Ray and the cloud's client raise into one message; Ray has printed the rest."""
    import click

    try:
        yield
    except click.ClickException as error:
        raise ClusterError(f"{what} failed: {error.message or 'see above'}") from error
    except SystemExit as error:
        raise ClusterError(f"{what} failed, status {error.code}: see above") from error
    except ImportError as error:
        raise ClusterError(f"{what} needs a package: {error}: pip install 'bkray[aws]'") from error
    except Exception as error:
        if type(error).__module__.split(".")[0] in ("botocore", "boto3", "googleapiclient"):
            raise ClusterError(f"{what} failed: {error}") from error
        raise


def run_on_head(path: Path, command: str) -> None:
    """Run a command on the head of a running cluster; its output goes to ours.

    Raises:
        ClusterError: there is no head, or the command failed.
    """
    from ray.autoscaler import sdk

    with _rays_errors(f"on the head, {command!r}"):
        sdk.run_on_cluster(str(path), cmd=command)
