"""Real runs of the training loop, small ones, kept as numbers in one Parquet file.

A recorded run goes on to its last step whatever becomes of it: the recorder draws windows from the
loop and asks no judge.
"""

import itertools
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.zoo.labels import label
from benchmarks.zoo.traces import WINDOW, Trace
from bkray.data.shards import prepare
from bkray.overrides import build
from bkray.train.window import train_window
from bkray.trial import compose, use_threads

FILE = Path(__file__).with_name("recorded.parquet")
PLAN_SEED = 11

SMALL: dict[str, Any] = {
    "model.d_model": 16,
    "model.n_layers": 2,
    "data.max_bytes": 200_000,
    "train.device": "cpu",
    "train.eval_every": 10**6,
    "train.eval_windows": 1,
    "train.checkpoint_every": 10**6,
}
MIXERS: dict[str, dict[str, Any]] = {
    "bk": {"model.mixer": "bk", "model.n_heads": 4, "model.n_values": 2},
    "attention": {"model.mixer": "attention", "model.n_heads": 2},
    "linear_recurrence": {"model.mixer": "linear_recurrence"},
}
DEPTHS: dict[str, dict[str, Any]] = {
    "dense": {},
    "act": {"model.depth": "act", "model.act_threshold": 0.8},
    "experts": {"model.n_experts": 2},
}
N_ANY, N_HIGH, N_BORDER = 60, 28, 20
"""Runs with a learning rate from 1e-4 to 30, from 4 to 30, and from 0.3 to 4."""


def plan() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield names and overrides of the runs on the default corpus."""
    draw = random.Random(PLAN_SEED)
    mixers, depths = itertools.cycle(MIXERS), itertools.cycle((*DEPTHS, "dense"))
    ranges = [(1e-4, 30.0)] * N_ANY + [(4.0, 30.0)] * N_HIGH + [(0.3, 4.0)] * N_BORDER
    for i, (low, high) in enumerate(ranges):
        mixer, depth = next(mixers), next(depths)
        yield (
            f"{i:03d}-{mixer}-{depth}",
            {
                **SMALL,
                **MIXERS[mixer],
                **DEPTHS[depth],
                "model.n_seq": draw.choice([16, 32]),
                "optimizer.lr": float(f"{low * (high / low) ** draw.random():.3g}"),
                "optimizer.warmup_steps": draw.choice([0, 10, 40, 100]),
                "optimizer.final_lr_fraction": draw.choice([0.1, 1.0]),
                "optimizer.clip_norm": draw.choice([0.5, 0.5, 1e6]),
                "train.batch_size": draw.choice([1, 4, 8, 16]),
                "train.steps": draw.choice([240, 320]),
                "seed": i,
            },
        )


def plan_without_context(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield runs on letters drawn one by one: no model can get below their unigram entropy."""
    for i, (mixer, lr) in enumerate(itertools.product(MIXERS, (0.01, 0.03))):
        draw = random.Random(1000 + i)
        text = "".join(draw.choices("abcdefgh .,", weights=range(1, 12), k=120_000))
        corpus = folder / f"letters-{i}.txt"
        corpus.write_text(text, encoding="utf-8")
        own = {"data.corpus": str(corpus), "optimizer.lr": lr, "train.steps": 448, "seed": i}
        yield f"letters-{i}-{mixer}", {**SMALL, **MIXERS[mixer], **own, "model.n_seq": 32}


def record() -> None:
    """Play every run and write the file."""
    use_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for name, overrides in itertools.chain(plan(), plan_without_context(Path(folder))):
            rows.append({"name": name, **_play(overrides)})
            print(name, overrides["optimizer.lr"], _summary(rows[-1]), flush=True)
    float32 = pa.list_(pa.float32())
    schema = pa.schema(
        {
            "name": pa.string(),
            "unigram_nats": pa.float64(),
            "losses": float32,
            "norms": float32,
            "masked": pa.list_(pa.int32()),
            "activations": float32,
            "lrs": float32,
        }
    )
    pq.write_table(
        pa.Table.from_pylist(rows, schema=schema),
        FILE,
        compression="zstd",
        compression_level=19,
        use_dictionary=False,
    )


def _play(overrides: dict[str, Any]) -> dict[str, Any]:
    config = build(overrides)
    shards = prepare(config.data, config.model.n_seq)
    run = compose(config, shards, None)
    said: dict[str, list[float]] = {"losses": [], "norms": [], "masked": [], "activations": []}
    lrs = []
    while run.progress.step < config.train.steps:
        window = train_window(run)
        assert len(window.loss_nats) == WINDOW, "a window that a judge would see otherwise"
        said["losses"] += window.loss_nats
        said["norms"] += window.grad_norm
        said["masked"] += window.masked
        said["activations"].append(max(window.activations.values()))
        lrs.append(window.lr)
    return {"unigram_nats": shards.unigram_entropy_nats, **said, "lrs": lrs}


def _summary(row: dict[str, Any]) -> str:
    what, onset = label(row["losses"], row["norms"], row["unigram_nats"])
    return what if onset is None else f"{what} from step {onset}"


def recorded() -> list[Trace]:
    """Return the recorded runs with their labels; kinds are what became of them."""
    traces = []
    for row in pq.read_table(FILE).to_pylist():
        what, onset = label(row["losses"], row["norms"], row["unigram_nats"])
        numbers = {
            name: tuple(row[name]) for name in ("losses", "norms", "masked", "activations", "lrs")
        }
        traces.append(
            Trace(
                name=row["name"],
                kind=f"real, {what}",
                onset=onset,
                unigram_nats=row["unigram_nats"],
                recorded=True,
                **numbers,
            )
        )
    return traces
