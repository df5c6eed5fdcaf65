"""What the head of a cluster on AWS does to itself; ``python -m bkray.cluster.head volume FILE``.

``FILE`` is the cluster file as Ray leaves it on the head, in JSON. ``volume`` attaches the volume
that holds ``~/runs`` and prints its device; ``artifacts`` prints where MLflow keeps artifacts, as
a line for systemd; ``exports`` prints who may mount ``~/runs``, as a line for NFS. No key is read.
"""

import ipaddress
import json
import os
import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bkray.cluster.cluster_file import UNWRITTEN
from bkray.errors import ClusterError

VOLUME_TAG = "bkray-runs"
"""The volume of ``~/runs`` has it, with the name of the cluster."""
WIDEST_PREFIX = 8
"""No private network is wider (10.0.0.0/8, RFC 1918)."""
_METADATA = "http://169.254.169.254"
_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Machine:
    """This machine, as EC2 knows it."""

    instance: str
    zone: str


def artifacts(cluster: Mapping[str, Any]) -> str:
    """Return where MLflow keeps its artifacts.

    Raises:
        ClusterError: the file names no bucket.
    """
    bucket = bucket_of(cluster)
    scheme = {"aws": "s3", "gcp": "gs"}[cluster["provider"]["type"]]
    return f"{scheme}://{bucket}/mlflow"


def bucket_of(cluster: Mapping[str, Any]) -> str:
    """Return the bucket that the cluster file names.

    Raises:
        ClusterError: it names none.
    """
    bucket = str((cluster.get("metadata") or {}).get("bucket") or "")
    if not bucket or UNWRITTEN in bucket:
        raise ClusterError(
            "metadata.bucket names no bucket: write the name of one that you own into the "
            "cluster file, below cluster_name"
        )
    return bucket


def exports(cluster: Mapping[str, Any]) -> str:
    """Return the line of ``exports(5)`` that lets the machines of one network mount ``~/runs``.

    The network is ``metadata.network``; on AWS, where that is missing, all of the VPC.

    Raises:
        ClusterError: it is missing elsewhere, no network, or wider than a private one can be.
    """
    given = (cluster.get("metadata") or {}).get("network")
    if not given and cluster["provider"]["type"] != "aws":
        raise ClusterError("metadata.network is missing: the range of addresses of the machines")
    networks = [network_of(str(one)) for one in ([given] if given else _vpc())]
    return " ".join(
        [f"{Path.home()}/runs", *(f"{one}(rw,sync,no_subtree_check)" for one in networks)]
    )


def network_of(text: str) -> str:
    """Return a range of addresses that is narrow enough to be trusted, such as ``10.0.0.0/16``.

    Raises:
        ClusterError: it is none, or wider than /8.
    """
    try:
        found = ipaddress.ip_network(text)
    except ValueError as error:
        raise ClusterError(f"metadata.network={text}: {error}; write it as 10.0.0.0/16") from None
    if found.prefixlen < WIDEST_PREFIX:
        raise ClusterError(f"metadata.network={text} is wider than /{WIDEST_PREFIX}")
    return str(found)


def attach_volume(ec2: Any, machine: Machine, *, cluster: str, gib: int) -> str:
    """Attach the volume of ``~/runs``, made at the first time, and return its device.

    Args:
        ec2: boto3's client.
        cluster: its name; the volume is found by it.
        gib: size of a new volume.

    Raises:
        ClusterError: the volume is in another zone, or another machine keeps it.
    """
    volume = _volume(ec2, machine.zone, cluster, gib)
    held = [one["InstanceId"] for one in volume.get("Attachments", [])]
    if machine.instance not in held:
        _wait(ec2, "volume_available", volume["VolumeId"])
        ec2.attach_volume(
            VolumeId=volume["VolumeId"], InstanceId=machine.instance, Device="/dev/sdf"
        )
    _wait(ec2, "volume_in_use", volume["VolumeId"])
    serial = volume["VolumeId"].replace("-", "")
    return f"/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_{serial}"


def volumes_of(ec2: Any, cluster: str) -> list[dict[str, Any]]:
    """Return the volumes that hold ``~/runs`` of a cluster, as EC2 describes them."""
    named = {"Name": f"tag:{VOLUME_TAG}", "Values": [cluster]}
    found: list[dict[str, Any]] = ec2.describe_volumes(Filters=[named])["Volumes"]
    return found


def _volume(ec2: Any, zone: str, cluster: str, gib: int) -> dict[str, Any]:
    found = volumes_of(ec2, cluster)
    here = [volume for volume in found if volume["AvailabilityZone"] == zone]
    if here:
        return here[0]
    if found:
        raise ClusterError(
            f"the volume {found[0]['VolumeId']} of {cluster} is in {found[0]['AvailabilityZone']}"
            f", this machine is in {zone}: set provider.availability_zone to the former"
        )
    tags = {VOLUME_TAG: cluster, "Name": f"{cluster} runs"}
    specification = {
        "ResourceType": "volume",
        "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
    }
    made: dict[str, Any] = ec2.create_volume(
        AvailabilityZone=zone,
        Size=gib,
        VolumeType="gp3",
        Encrypted=True,
        TagSpecifications=[specification],
    )
    return made


def _wait(ec2: Any, state: str, volume: str) -> None:
    from botocore.exceptions import WaiterError

    every = 5
    patience = {"Delay": every, "MaxAttempts": _SECONDS // every}
    try:
        ec2.get_waiter(state).wait(VolumeIds=[volume], WaiterConfig=patience)
    except WaiterError as error:
        raise ClusterError(f"{volume}: {error}; is another machine using it?") from None


def this_machine() -> Machine:
    """Return this machine, from the service that EC2 answers every machine by."""
    instance, zone = _metadata("instance-id", "placement/availability-zone")
    return Machine(instance, zone)


def _vpc() -> list[str]:
    """Return the ranges of addresses of the network that this machine is in."""
    [mac] = _metadata("mac")
    [ranges] = _metadata(f"network/interfaces/macs/{mac}/vpc-ipv4-cidr-blocks")
    return ranges.split()


def _metadata(*names: str) -> list[str]:
    root = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", _METADATA).rstrip("/")
    lives = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = _ask(f"{root}/latest/api/token", lives, method="PUT")
    known = {"X-aws-ec2-metadata-token": token}
    return [_ask(f"{root}/latest/meta-data/{name}", known).strip() for name in names]


def _ask(address: str, headers: dict[str, str], method: str = "GET") -> str:
    request = urllib.request.Request(address, headers=headers, method=method)
    with urllib.request.urlopen(request, timeout=10) as response:
        return str(response.read().decode())


def main() -> None:
    """Print the device of ``~/runs``, or a line: for systemd of artifacts, for NFS of networks."""
    what, file = sys.argv[1:]
    cluster = json.loads(Path(file).expanduser().read_text())
    if what == "artifacts":
        print(f"MLFLOW_ARTIFACTS={artifacts(cluster)}")
        return
    if what == "exports":
        print(exports(cluster))
        return
    import boto3

    ec2 = boto3.client("ec2", region_name=cluster["provider"]["region"])
    gib = int(cluster["metadata"]["volume_gib"])
    print(attach_volume(ec2, this_machine(), cluster=cluster["cluster_name"], gib=gib))


if __name__ == "__main__":
    main()
