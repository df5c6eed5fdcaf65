"""Brings a cluster up against a stand-in for AWS; ``python -m tests.aws cluster.yaml FOLDER``.

EC2 and IAM are moto's, in this process. ``ssh`` and ``rsync`` are programs, first on the ``PATH``,
that write down how they were called and do nothing. ``bootstrap.json`` is what the head would be
told, ``machines.json`` what would run, ``ports.json`` who may reach it, ``ssh.jsonl`` what would
be called on the head, ``left.json`` what ``bkray cluster down`` leaves, and ``states.json`` how
the machines are then.
"""

import contextlib
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

NOTE_DOWN = """#!{python}
import json, pathlib, sys
*_, source, target = sys.argv
if target.endswith("~/ray_bootstrap_config.yaml"):
    pathlib.Path({folder!r}, "bootstrap.json").write_text(pathlib.Path(source).read_text())
with open({folder!r} + "/{name}", "a") as notes:
    notes.write(json.dumps(sys.argv[-1]) + "\\n")
"""


def main() -> None:
    cluster_file, folder = sys.argv[1], Path(sys.argv[2])
    programs = folder / "bin"
    programs.mkdir()
    for name in ("ssh", "rsync"):
        said = NOTE_DOWN.format(python=sys.executable, folder=str(folder), name=f"{name}.jsonl")
        (programs / name).write_text(said)
        (programs / name).chmod(0o755)
    os.environ.update(
        PATH=f"{programs}:{os.environ['PATH']}",
        HOME=str(folder),
        TMPDIR=str(folder),  # what Ray remembers of a cluster of this name
        AWS_ACCESS_KEY_ID="nobody",
        AWS_SECRET_ACCESS_KEY="nothing",
        RAY_USAGE_STATS_ENABLED="0",
    )
    from moto import mock_aws

    write_token(folder)
    written = folder / "cluster.yaml"
    text = Path(cluster_file).read_text().replace("WRITE-YOUR-BUCKET", "somebodys-bucket")
    written.write_text(text)
    with mock_aws():
        make_role()
        bkray("cluster", "up", str(written), "--yes")
        cluster = json.loads((folder / "bootstrap.json").read_text())
        (folder / "machines.json").write_text(json.dumps(machines_of(cluster)))
        (folder / "ports.json").write_text(json.dumps(ports_of(cluster)))
        bkray("cluster", "verify", str(written), "--nodes", "2", "--gpus", "1")
        with (folder / "left.json").open("w") as left, contextlib.redirect_stdout(left):
            down(written)
        states = {machine_name(one): one.state["Name"] for one in machines(cluster)}
        (folder / "states.json").write_text(json.dumps(states))
        (folder / "stray.json").write_text(json.dumps(seen_of_a_stray(cluster, written)))


def bkray(*words: str) -> None:
    from bkray.cli import app

    assert app(list(words), standalone_mode=False) == 0, words


def down(cluster_file: Path) -> None:
    """Run ``bkray cluster down``; Ray speaks on the standard output too: the last line is ours."""
    from bkray.cluster import provider

    left = provider.down(cluster_file)
    print(json.dumps(dataclasses.asdict(left)))


def seen_of_a_stray(cluster: dict[str, Any], cluster_file: Path) -> list[str]:
    """What ``down`` would tell of a machine that Ray's own end of a cluster overlooks."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    from bkray.cluster.cluster_file import read_yaml
    from bkray.cluster.provider import remaining

    node = cluster["available_node_types"]["cpu"]["node_config"]
    AWSNodeProvider(cluster["provider"], cluster["cluster_name"]).create_node(node, {}, 1)
    return list(remaining(read_yaml(cluster_file)).machines)


def write_token(home: Path) -> None:
    token = home / ".ray/auth_token"
    token.parent.mkdir()
    token.write_text("0" * 64)
    token.chmod(0o600)


def machines_of(cluster: dict[str, Any]) -> dict[str, Any]:
    """Start a worker of each kind as the head would, and describe every machine."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    provider = AWSNodeProvider(cluster["provider"], cluster["cluster_name"])
    kinds = cluster["available_node_types"]
    for name in kinds.keys() - {cluster["head_node_type"]}:
        tags = {"ray-user-node-type": name, "ray-node-type": "worker"}
        provider.create_node(kinds[name]["node_config"], tags, 1)
    keep_runs(cluster)
    return {machine_name(machine): describe(machine) for machine in machines(cluster)}


def machines(cluster: dict[str, Any]) -> list[Any]:
    import boto3

    ec2 = boto3.resource("ec2", region_name=cluster["provider"]["region"])
    return list(ec2.instances.all())


def keep_runs(cluster: dict[str, Any]) -> None:
    """Attach the volume of ``~/runs`` as the head would."""
    import boto3

    from bkray.cluster.head import Machine, attach_volume

    [head] = [one for one in machines(cluster) if machine_name(one) == "head"]
    here = Machine(head.id, head.placement["AvailabilityZone"])
    ec2 = boto3.client("ec2", region_name=cluster["provider"]["region"])
    attach_volume(ec2, here, cluster=cluster["cluster_name"], gib=100)


def ports_of(cluster: dict[str, Any]) -> list[Any]:
    """Who may reach the machines: first port, last port, addresses."""
    [group] = {one["GroupId"] for head in machines(cluster) for one in head.security_groups}
    import boto3

    ec2 = boto3.resource("ec2", region_name=cluster["provider"]["region"])
    rules = ec2.SecurityGroup(group).ip_permissions
    return [
        [rule.get("FromPort"), rule.get("ToPort"), [one["CidrIp"] for one in rule["IpRanges"]]]
        for rule in rules
    ]


def make_role() -> None:
    """Make the head's role, for which Ray would else wait half a minute."""
    import boto3

    iam, name = boto3.client("iam"), "ray-autoscaler-v1"
    iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")
    iam.create_instance_profile(InstanceProfileName=name)
    iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)


def machine_name(machine: Any) -> str:
    return next(tag["Value"] for tag in machine.tags if tag["Key"] == "ray-user-node-type")


def describe(machine: Any) -> dict[str, Any]:
    return {
        "type": machine.instance_type,
        "market": machine.instance_lifecycle or "on demand",
        "disk_gib": sorted(volume.size for volume in machine.volumes.all()),
        "zone": machine.placement["AvailabilityZone"],
    }


if __name__ == "__main__":
    main()
