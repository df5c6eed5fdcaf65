"""What the head does to itself, against EC2 of moto and a metadata service of our own."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from bkray.cluster import head
from bkray.errors import ClusterError
from tests.metadata import metadata

ZONE = "us-west-2a"
CLUSTER = {
    "cluster_name": "bkray",
    "provider": {"type": "aws", "region": "us-west-2"},
    "metadata": {"bucket": "somebodys-bucket", "volume_gib": 7},
}


@pytest.fixture(scope="module")
def ec2() -> Iterator[Any]:
    """One account for all tests here; each has clusters of its own."""
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        yield boto3.client("ec2", region_name="us-west-2")


@cache
def image(ec2: Any) -> str:
    return str(ec2.describe_images()["Images"][0]["ImageId"])


def machine(ec2: Any, zone: str = ZONE) -> head.Machine:
    placed = {"AvailabilityZone": zone}
    started = ec2.run_instances(ImageId=image(ec2), MinCount=1, MaxCount=1, Placement=placed)
    return head.Machine(started["Instances"][0]["InstanceId"], zone)


def test_the_first_head_makes_the_volume_and_the_next_one_finds_it(ec2: Any) -> None:
    first = machine(ec2)
    device = head.attach_volume(ec2, first, cluster="bkray", gib=7)
    assert head.attach_volume(ec2, first, cluster="bkray", gib=7) == device  # ray up again
    ec2.terminate_instances(InstanceIds=[first.instance])
    [volume] = head.volumes_of(ec2, "bkray")
    if volume["Attachments"]:  # the end of a machine frees its volumes; in moto some stay
        ec2.detach_volume(VolumeId=volume["VolumeId"])
    assert head.attach_volume(ec2, machine(ec2), cluster="bkray", gib=7) == device
    [volume] = head.volumes_of(ec2, "bkray")
    assert (volume["Size"], volume["Encrypted"]) == (7, True)
    assert device.endswith(volume["VolumeId"].replace("-", ""))


def test_another_cluster_has_another_volume(ec2: Any) -> None:
    ours = head.attach_volume(ec2, machine(ec2), cluster="one", gib=7)
    assert head.attach_volume(ec2, machine(ec2), cluster="other", gib=7) != ours


def test_a_volume_in_another_zone_is_an_error_and_no_second_one_is_made(ec2: Any) -> None:
    head.attach_volume(ec2, machine(ec2), cluster="two", gib=7)
    with pytest.raises(ClusterError, match=r"set provider\.availability_zone"):
        head.attach_volume(ec2, machine(ec2, "us-west-2b"), cluster="two", gib=7)
    assert len(head.volumes_of(ec2, "two")) == 1


def test_a_volume_that_another_machine_keeps_is_an_error(
    ec2: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "_SECONDS", 5)
    head.attach_volume(ec2, machine(ec2), cluster="three", gib=7)
    with pytest.raises(ClusterError, match="is another machine using it"):
        head.attach_volume(ec2, machine(ec2), cluster="three", gib=7)


def test_a_machine_asks_who_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with metadata({"instance-id": "i-0", "placement/availability-zone": ZONE}) as address:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"{address}/")
        assert head.this_machine() == head.Machine("i-0", ZONE)


@pytest.mark.parametrize(("provider", "uri"), [("aws", "s3"), ("gcp", "gs")])
def test_artifacts_go_into_the_bucket_that_the_file_names(
    provider: str,
    uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "ray_bootstrap_config.yaml"
    file.write_text(json.dumps({**CLUSTER, "provider": {"type": provider}}))
    monkeypatch.setattr("sys.argv", ["head", "artifacts", str(file)])
    head.main()
    assert capsys.readouterr().out == f"MLFLOW_ARTIFACTS={uri}://somebodys-bucket/mlflow\n"


@pytest.mark.parametrize("metadata", [None, {}, {"bucket": "WRITE-YOUR-BUCKET"}, {"bucket": ""}])
def test_without_a_bucket_nothing_is_guessed(metadata: Any) -> None:
    with pytest.raises(ClusterError, match=r"metadata\.bucket names no bucket"):
        head.artifacts({**CLUSTER, "metadata": metadata})
