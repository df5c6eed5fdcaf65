"""What the public guides promise of ACT, measured: presets, the grid of Task 7.2, memory.

    python -m benchmarks.guides presets [--seeds 3] [OVERRIDES ...]
    python -m benchmarks.guides grid [--trials 30] [--out FOLDER] [--show FOLDER] [OVERRIDES ...]
    python -m benchmarks.guides memory [--repeats 5]

``presets`` trains the guides' model (learned positions, 4 experts, dropout 0.1), dense and under
each preset, for the same number of steps. ``grid`` is ``bkray sweep act --sampler grid`` over the
words of WikiText-2's small splits (folder wikitext-2 of ``BKRAY_TEST_DATA``, or ``data.corpus``)
and tables of what came out; ``--show`` prints those of a sweep that has run. ``memory`` measures
training steps, every model in processes of its own.
"""

import argparse
import math
import multiprocessing
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bkray.errors import DataError
from bkray.events import TrialEnded
from bkray.nn.build import language_model
from bkray.overrides import acting, build, parse
from bkray.report.tables import Row, collect
from bkray.train.guard import Guard
from bkray.train.measure import forget_peak_memory, peak_memory_mib
from bkray.train.optim import adamw
from bkray.train.step import TokenTally, optimizer_step
from bkray.train.watch import Blocks
from bkray.trial import run, use_threads
from search_spaces.act import GUIDE_PRESETS, LAMBDAS, THRESHOLDS

GUIDES_MODEL = {"model.position": "learned", "model.n_experts": 4, "model.dropout": 0.1}
NO_EARLY_STOP = {"model.depth": "act"}
"""Untrained, ACT runs every token through all layers: the most memory it can need."""

EXACT_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""glibc: a large block goes back when freed. Else peaks show the holes of the heap, by chance."""


class Promise(NamedTuple):
    """What the guides say of a preset: speedup, and loss of accuracy."""

    speedup: str
    accuracy: str


PROMISES = {
    "careful": Promise("1.1-1.3", "<2%"),
    "balanced": Promise("1.3-1.5", "2-5%"),
    "fast": Promise("1.5-2.0", "5-10%"),
}


def presets(seeds: int, overrides: Mapping[str, Any]) -> None:
    """Print each preset beside its promise; perplexity is that of the last step."""
    base = {**GUIDES_MODEL, "train.steps": 400, "train.eval_every": 400, **overrides}
    dense = [trained({**base, "model.depth": "dense", "seed": seed}) for seed in range(seeds)]
    losses = [row["final_val_loss_nats"] for row in dense]
    print(f"dense     loss {means(losses, '.4f')} nats/token", flush=True)
    for (name, promise), preset in zip(PROMISES.items(), GUIDE_PRESETS, strict=True):
        arm = {**base, **preset, "model.depth": "act"}
        rows = [trained({**arm, "seed": seed}) for seed in range(seeds)]
        worse = [
            100 * math.expm1(row["final_val_loss_nats"] - loss)
            for row, loss in zip(rows, losses, strict=True)
        ]
        measured, estimate, layers = (
            [row[column] for row in rows]
            for column in ("speedup_measured", "speedup_estimate", "avg_layers_executed")
        )
        print(f"{name:9s} {preset['model.act_threshold']}/{preset['model.act_lambda']}")
        print(f"    speedup measured {means(measured, '.2f')}, promised {promise.speedup}")
        print(f"    speedup estimate {means(estimate, '.2f')}, layers {means(layers, '.2f')}")
        print(
            f"    perplexity over dense, % {means(worse, '+.1f')}, promised {promise.accuracy}",
            flush=True,
        )


def trained(overrides: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the summary of one trial."""
    *_, ended = run(build(acting(overrides)), None)
    assert isinstance(ended, TrialEnded) and ended.outcome == "ok", ended
    return ended.summary


def means(values: Sequence[float], form: str) -> str:
    """Return the mean, and each value behind it."""
    each = " ".join(format(value, form) for value in values)
    return f"{statistics.mean(values):{form}} ({each})"


def grid(out: Path, trials: int | None, overrides: Sequence[str]) -> None:
    """Run the grid, or its first trials, as the sweep it is."""
    corpus = Path(os.environ.get("BKRAY_TEST_DATA", "../shared/data")) / "wikitext-2"
    if not any(word.partition("=")[0].endswith("corpus") for word in overrides):
        if not corpus.is_dir():
            raise DataError(f"there is no {corpus}: set BKRAY_TEST_DATA, or give data.corpus=PATH")
        overrides = [f"data.corpus={corpus.resolve()}", *overrides]
    words = ["data.tokenizer=words", "data.vocab_size=4096", "train.steps=200", *overrides]
    few = [] if trials is None else ["--trials", str(trials)]
    command = ["sweep", "act", "--sampler", "grid", "--out", str(out), *few, *words]
    print(f"bkray {shlex.join(command)}", flush=True)
    status = subprocess.run([sys.executable, "-m", "bkray.cli", *command]).returncode
    if status:
        sys.exit(status)  # the sweep has said why


def show_grid(folder: Path) -> None:
    """Print a table of thresholds by lambdas for each figure."""
    rows = collect(folder)
    cells = {
        (row.get("param/model.act_threshold"), row.get("param/model.act_lambda")): row
        for row in rows
        if not row["arm"]
    }
    for row in rows:
        if row["arm"]:
            loss, speed = row["final_val_loss_nats"], row["speedup_measured"]
            print(f"{row['arm']}: {shown(loss, '.3f')} nats/token, speed {shown(speed, '.2f')}")
    figures = {
        "perplexity over the deepest dense model, %": "val_ppl_relative_to_dense",
        "layers run": "avg_layers_executed",
        "speedup measured": "speedup_measured",
        "speedup estimate": "speedup_estimate",
    }
    for title, column in figures.items():
        print(f"\n{title}\nthreshold " + "".join(f"{weight:>10}" for weight in LAMBDAS))
        for threshold in THRESHOLDS:
            values = [cell(cells.get((threshold, weight), {}), column) for weight in LAMBDAS]
            print(f"{threshold:<10}" + "".join(f"{value:>10}" for value in values))


def cell(row: Row, column: str) -> str:
    """Return a figure of a trial; a ratio of perplexities as what is above 1, in percent."""
    value = row.get(column)
    if column == "val_ppl_relative_to_dense" and value is not None:
        return f"{100 * (value - 1):+.1f}"
    return shown(value, ".2f")


def shown(value: float | None, form: str) -> str:
    """Return a number, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def memory(repeats: int) -> None:
    """Print parameters and memory of dense and ACT beside the promised 5%."""
    sizes: dict[str, tuple[int, int, dict[str, Any]]] = {
        "the guides' model, 10,000 words, batch 4": (10_000, 4, GUIDES_MODEL),
        "the sweeps' model, bytes, batch 16": (256, 16, {}),
    }
    os.environ.update(EXACT_ALLOCATOR)  # read when a process starts
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as fresh:
        for title, size in sizes.items():
            seen: dict[str, list[Footprint]] = {"dense": [], "ACT": []}
            for _ in range(repeats):
                for name, depth in (("dense", {}), ("ACT", NO_EARLY_STOP)):
                    seen[name].append(fresh.submit(footprint, *size, depth).result())
            print(f"{title} (promised: less than 5% over dense)")
            for i, part in enumerate(Footprint._fields):
                dense, act = ([one[i] for one in seen[name]] for name in ("dense", "ACT"))
                over = statistics.median(act) / statistics.median(dense) - 1
                print(f"    {part:11s} dense {spread(dense)}  ACT {spread(act)}  {over:+.1%}")


def spread(values: Sequence[float]) -> str:
    """Return the median, and the least and the most."""
    return f"{statistics.median(values):,.1f} ({min(values):,.1f}..{max(values):,.1f})"


class Footprint(NamedTuple):
    """What a model takes. ``step_mib`` is what training adds to what the process held before."""

    parameters: float
    step_mib: float
    process_mib: float


def footprint(
    vocabulary: int, batch: int, size: Mapping[str, Any], depth: Mapping[str, Any]
) -> Footprint:
    """Return the parameters, and the peak of ten training steps after two that warm up."""
    use_threads(1)
    torch.manual_seed(0)
    config = build({**size, **depth})
    model = language_model(config.model, vocabulary)
    optimizer = adamw(model, config.optimizer)
    tokens_BN = torch.randint(vocabulary, (batch, config.model.n_seq))
    cpu, blocks = torch.device("cpu"), Blocks(model)
    held = 0.0
    for n_steps in (2, 10):
        forget_peak_memory(cpu)
        held = peak_memory_mib(cpu)
        for _ in range(n_steps):
            optimizer_step(
                model,
                optimizer,
                [(tokens_BN, tokens_BN)],
                TokenTally(config.model, None),
                clip_norm=config.optimizer.clip_norm,
                autocast=torch.autocast("cpu", enabled=False),
                blocks=blocks,
                guard=Guard(cpu, None, 0),
            )
    peak = peak_memory_mib(cpu)
    return Footprint(sum(p.numel() for p in model.parameters()), peak - held, peak)


def main() -> None:
    """Run the comparison that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("presets")
    verb.add_argument("--seeds", type=int, default=3)
    verb.add_argument("overrides", nargs="*")
    verb = verbs.add_parser("grid")
    verb.add_argument("--out", type=Path)
    verb.add_argument("--show", type=Path)
    verb.add_argument("--trials", type=int)
    verb.add_argument("overrides", nargs="*")
    verb = verbs.add_parser("memory")
    verb.add_argument("--repeats", type=int, default=5)
    said = parser.parse_args()
    if said.verb == "presets":
        presets(said.seeds, parse(said.overrides))
    elif said.verb == "memory":
        memory(said.repeats)
    else:
        folder = said.show or said.out or Path(f"runs/act/{datetime.now():%Y%m%d-%H%M%S}-grid")
        if not said.show:
            grid(folder, said.trials, said.overrides)
        show_grid(folder)


if __name__ == "__main__":
    main()
