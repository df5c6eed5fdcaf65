"""``bkray cluster check|up|verify|down``: around Ray's own commands on a cluster file."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bkray.cli.words import USER_ERROR, AsJson, print_json
from bkray.errors import ClusterError

if TYPE_CHECKING:
    from bkray.cluster.check import Checked

app = typer.Typer(no_args_is_help=True, help="Machines of a cloud, or your own, under one Ray.")

File = Annotated[Path, typer.Argument(metavar="[CLUSTER.yaml]")]
Prices = Annotated[
    Path | None, typer.Option(help="Prices that go over those of bkray/cluster/prices.yaml.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@app.command(epilog="Example: bkray cluster check cluster.yaml --json")
def check(
    cluster: File = Path("cluster.yaml"), prices: Prices = None, as_json: AsJson = False
) -> int:
    """Say what is wrong with a cluster file and what it may cost; nothing is started.

    Looks at Ray's schema, the versions here and there, the image, open
    ports, the token, the bucket, the price per hour, and when it ends.
    The status is 2 where something keeps the cluster from being started.
    """
    from bkray.cluster.check import check as look

    found = look(cluster, prices)
    if as_json:
        print_json(found.plain())
    else:
        _print(found)
    return 0 if found.ok else USER_ERROR


@app.command(epilog="Example: bkray cluster up cluster.yaml")
def up(
    cluster: File = Path("cluster.yaml"),
    prices: Prices = None,
    yes: Yes = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="With --yes: restart Ray where a head runs.")
    ] = False,
) -> int:
    """Check a cluster file, then start the cluster (ray up).

    Where a head runs already, Ray is restarted on it: every job and sweep
    there ends. The question says so, and --yes alone does not do it.
    """
    from bkray.cluster.check import check as look
    from bkray.cluster.cluster_file import read_yaml
    from bkray.cluster.provider import running_head
    from bkray.cluster.provider import up as start

    found = look(cluster, prices)
    _print(found)
    if not found.ok:
        raise ClusterError(f"nothing was started: mend the errors of {cluster} above")
    question = "Start it?"
    _must_be_answered(yes, question)
    if head := running_head(read_yaml(cluster)):
        question = f"{head} is its head already. Ray restarts, and what runs there ends. Go on?"
        if yes and not restart:
            raise ClusterError(f"{question} Give --restart beside --yes")
    _ask(yes, question)
    start(cluster)
    print(
        f"up. Next: bkray cluster verify {cluster}, and at the end: bkray cluster down {cluster}"
    )
    return 0


@app.command(epilog="Example: bkray cluster verify cluster.yaml --nodes 3")
def verify(
    cluster: Annotated[Path | None, typer.Argument(metavar="[CLUSTER.yaml]")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes that must answer; one by default.")] = 1,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of each of them.")] = 0,
    wait: Annotated[float, typer.Option(min=1, help="Seconds for nodes to come.")] = 900.0,
    address: Annotated[
        str | None, typer.Option(help="Of a running cluster, instead of the file: auto|HOST.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Run a job of five seconds on so many nodes (--nodes) and compare what they have.

    Without --address it is run on the head of the file's cluster, by ssh.
    An autoscaler is asked for nodes that are missing; they cost until
    they have been idle for long enough.
    """
    if address is None:
        from bkray.cluster.provider import run_on_head

        words = f"--nodes {nodes} --gpus {gpus} --wait {wait:g}{' --json' if as_json else ''}"
        run_on_head(
            cluster or Path("cluster.yaml"), f"bkray cluster verify --address auto {words}"
        )
        return 0
    if cluster is not None:
        raise ClusterError(
            f"give {cluster} or --address {address}, not both: the file does nothing"
        )
    from bkray.cluster.verify import verify as run

    found = run(address=address, nodes=nodes, gpus=gpus, wait_seconds=wait)
    if as_json:
        print_json(found.plain())
        return 0
    print(f"{found.nodes} nodes, {found.gpus:g} GPUs; torch sees {found.gpus_seen} in the job")
    for one in found.workers:
        print(f"  {one['host']}: Python {one['python']}, torch {one['torch']}, Ray {one['ray']}")
    print(f"Ray Train: {found.rounds} all-reduces in {found.seconds:.1f} s")
    return 0


@app.command(epilog="Example: bkray cluster down cluster.yaml")
def down(cluster: File = Path("cluster.yaml"), yes: Yes = False, as_json: AsJson = False) -> int:
    """End every machine of the cluster (ray down), and ask the provider what is left."""
    from bkray.cluster.provider import down as end

    _ask(yes, f"End every machine of {cluster}?")
    left = end(cluster)
    if as_json:
        print_json(dataclasses.asdict(left))
        return 0
    print("no machine is left")
    for volume in left.volumes:
        print(f"stays and costs, with ~/runs on it: volume {volume}")
    if left.bucket:
        print(f"stays and costs, with MLflow's artifacts: bucket {left.bucket}")
    return 0


def _must_be_answered(yes: bool, question: str) -> None:
    if not yes and not sys.stdin.isatty():
        raise ClusterError(f"{question} Nobody is there to answer: give --yes")


def _ask(yes: bool, question: str) -> None:
    _must_be_answered(yes, question)
    if not yes:
        typer.confirm(question, abort=True)


def _print(found: "Checked") -> None:
    for finding in found.findings:
        print(f"{finding.level:<6} {finding.what}: {finding.text}")
