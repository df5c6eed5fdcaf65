"""Sweeps under kills: each is killed again and again, resumed, and in the end held to a whole one.

``python tests/chaos/storm.py [--seed N] [NAME ...]`` runs the long form and prints a table.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import mortal
from intact import Done, Flaws, done_trials, flaws
from rich.console import Console
from rich.table import Table
from tiny import write_text
from victims import AT_THE_END, DRIVER, MOMENTS, NODE, WHILE_TRAINING, WORKER, Kill, Victim

from bkray.cluster.retries import MORE_TRIES
from bkray.train import attempts

SMALL = str(Path(__file__).with_name("small_sweep.py"))
_DRIVERS = 40
"""Times that a sweep is started or resumed, at most."""


class Case(NamedTuple):
    """A sweep and who dies in it. ``ordered``: one trial runs after the other, so that its table
    equals that of an undisturbed run."""

    name: str
    words: Sequence[str]
    carrier: Sequence[str]
    n_planned: int
    n_kills: int
    victims: Sequence[str]
    seeds: int = 1
    ordered: bool = True


class Toll(NamedTuple):
    """What a case came to. ``orphans`` are processes that outlived their driver."""

    kills: Counter[str]
    moments: Counter[str]
    n_resumes: int
    flaws: Flaws
    orphans: list[str]
    statuses: list[int]
    seconds: float
    compared: bool

    @property
    def survived(self) -> bool:
        return not any(self.flaws) and not self.orphans


LOCAL, ON_RAY = ["--local"], ["--concurrency", "1"]
CASES = (
    Case("local, pruned", ["small", "--trials", "14"], LOCAL, 14, 10, [DRIVER]),
    Case("local, 2 seeds", ["small", "--seeds", "2"], LOCAL, 12, 6, [DRIVER], seeds=2),
    Case("act smoke", ["act"], ON_RAY, 6, 6, [DRIVER, WORKER, DRIVER, NODE]),
    Case("pruned", ["small"], ON_RAY, 6, 6, [WORKER, DRIVER, NODE]),
    Case("2 at once", ["small"], ["--concurrency", "2"], 6, 4, [DRIVER, WORKER], ordered=False),
    Case("2 workers", ["small", "--trials", "4"], ["--workers", "2"], 4, 4, [DRIVER, WORKER]),
)
_NAMES = {case.name: case for case in CASES}
CHANGES = "changes to the disk"
STRIDE = 7
"""Before every seventh of them, and once more in the sweep resumed from there."""


def storm(case: Case, folder: Path, seed: int) -> Toll:
    """Run a case in ``folder``; every choice follows from ``seed``, only its timing does not."""
    chance, begun = random.Random(f"{case.name} {seed}"), time.monotonic()
    out, whole = folder / "out", folder / "whole"
    folder.mkdir(parents=True, exist_ok=True)
    if case.ordered:
        run_whole(case, whole)
    kills = plan(case, chance)
    struck: list[Kill] = []
    done: dict[str, Done] = {}
    victims: list[Victim] = []
    while not victims or (victims[-1].process.returncode and len(victims) < _DRIVERS):
        words = ["resume", str(out)] if (out / "sweep.json").exists() else _words(case, out)
        victims.append(Victim(words, folder, folder / "log.txt"))
        for kill in _torment(victims[-1], kills, out, chance):
            struck.append(kill)
            done |= done_trials(out)
        victims[-1].wait()
        done |= done_trials(out)
    orphans = [left for victim in victims for left in victim.orphans()]
    return Toll(
        kills=Counter(kill.who for kill in struck),
        moments=Counter(kill.moment for kill in struck),
        n_resumes=len(victims) - 1,
        flaws=flaws(
            out,
            n_planned=case.n_planned,
            seeds=case.seeds,
            done=done,
            whole=whole if case.ordered else None,
        ),
        orphans=orphans,
        statuses=[victim.process.returncode for victim in victims],
        seconds=time.monotonic() - begun,
        compared=case.ordered,
    )


def die_before_changes(folder: Path, stride: int) -> Toll:
    """Run ``mortal.py`` in ``folder``.

    Raises:
        subprocess.CalledProcessError: a sweep broke, which is not to die.
    """
    begun = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    said = subprocess.run(
        [sys.executable, mortal.__file__, str(folder), str(stride)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    deaths = [json.loads(line) for line in said.stdout.splitlines()]
    n_kills = sum(len(death["at"]) for death in deaths)
    wrong = {
        kind: [f"after {death['at']}: {words}" for death in deaths for words in death[kind]]
        for kind in Flaws._fields
    }
    return Toll(
        kills=Counter({DRIVER: n_kills}),
        moments=Counter(change=n_kills),
        n_resumes=n_kills,
        flaws=Flaws(**wrong),
        orphans=[],
        statuses=[],
        seconds=time.monotonic() - begun,
        compared=True,
    )


def plan(case: Case, chance: random.Random) -> list[Kill]:
    """Return the kills of a case, the last one first. A driver dies at every moment in turn."""
    kills: list[Kill] = []
    moments: list[str] = []
    for i in range(case.n_kills - 1):
        who = case.victims[i % len(case.victims)]
        if not moments:
            moments = list(MOMENTS)
            chance.shuffle(moments)
        moment = moments.pop() if who == DRIVER else chance.choice(WHILE_TRAINING)
        kills.append(Kill(who, moment, chance.randint(1, 3) if moment in WHILE_TRAINING else 1))
    return [Kill(DRIVER, AT_THE_END, 1), *kills]


def _torment(
    victim: Victim, kills: list[Kill], out: Path, chance: random.Random
) -> Iterator[Kill]:
    """Take kills from the end of the list until the driver is dead or done; yield them."""
    while kills and victim.process.poll() is None:
        kill = kills[-1] if _bears(out) else kills[-1]._replace(who=DRIVER)
        if victim.suffer(kill, out, chance):
            kills.pop()
            yield kill
        if kill.who == DRIVER:
            return


def run_whole(case: Case, out: Path) -> None:
    """Run the sweep of a case undisturbed; where it makes no difference, without Ray."""
    team = "--workers" in case.carrier  # sums up its gradients in another order
    words = _words(case._replace(carrier=case.carrier if team else LOCAL), out)
    log = out.with_suffix(".txt")
    assert Victim(words, out.parent, log).wait() == 0, log.read_text()


def _words(case: Case, out: Path) -> list[str]:
    name, *words = case.words
    if name == "small":
        text = write_text(out.parent / "text.txt", seed=0)
        name, words = SMALL, [f"data.corpus={text}", *words]
    return ["sweep", name, "--preset", "smoke", *words, *case.carrier, "--out", str(out)]


def _bears(out: Path) -> bool:
    """Whether no trial is at its last try: a worker's death counts as a try."""
    tried = [attempts.last(folder) for folder in out.glob("trials/*")]
    return all(len(attempt.failures) < MORE_TRIES for attempt in tried)


def table(tolls: dict[str, Toll]) -> Table:
    """Return what the storm came to, a line per sweep."""
    shown = Table(title="Kills survived")
    for column in ("sweep", "kills", "by kind", "moments", "resumes", "lost", "doubled"):
        shown.add_column(column)
    for column in ("run again", "table equal", "orphans", "left", "seconds"):
        shown.add_column(column)
    for name, toll in tolls.items():
        shown.add_row(name, *_cells(toll))
    n_kills = sum(toll.kills.total() for toll in tolls.values())
    shown.add_section()
    shown.add_row(f"{len(tolls)} sweeps", str(n_kills))
    return shown


def _cells(toll: Toll) -> list[str]:
    flaws = toll.flaws
    equal = "yes" if not flaws.unequal else f"no: {len(flaws.unequal)}"
    return [
        str(toll.kills.total()),
        ", ".join(f"{n} {who}" for who, n in sorted(toll.kills.items())),
        ", ".join(f"{n} {moment}" for moment, n in sorted(toll.moments.items())),
        str(toll.n_resumes),
        str(len(flaws.lost)),
        str(len(flaws.doubled)),
        str(len(flaws.rerun)),
        equal if toll.compared else "-",
        str(len(toll.orphans)),
        str(len(flaws.left)),
        f"{toll.seconds:.0f}",
    ]


def main() -> int:
    """Run the cases that are named, all by default; return 1 if one of them did not survive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=", ".join([*_NAMES, CHANGES]))
    parser.add_argument("--seed", type=int, default=20261121)
    given = parser.parse_args()
    tolls: dict[str, Toll] = {}
    with tempfile.TemporaryDirectory(prefix="bkray-chaos-") as base:
        for name in given.names or [*_NAMES, CHANGES]:
            folder = Path(base) / name.replace(", ", "-").replace(" ", "-")
            if name == CHANGES:
                tolls[name] = die_before_changes(folder, STRIDE)
            else:
                tolls[name] = storm(_NAMES[name], folder, given.seed)
            print(f"{name}: {tolls[name]}", flush=True)
            if not tolls[name].survived and (log := folder / "log.txt").exists():
                print(log.read_text()[-4000:], flush=True)
    Console(width=160).print(table(tolls))
    return 0 if all(toll.survived for toll in tolls.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
