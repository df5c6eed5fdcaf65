"""What the user chose for a sweep, and whether it can be done."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bkray.cluster.budget import GRACE_SECONDS
from bkray.cluster.search import Search
from bkray.cluster.session import cores, places
from bkray.cluster.study import check_beside_copy
from bkray.config import TrialConfig
from bkray.errors import ConfigError
from bkray.overrides import Overrides
from bkray.train.team import check_shares


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOptions:
    """What the user chose. ``None`` leaves a choice to the sweep, its preset or the machine.

    ``out`` is the sweep's folder, ``runs`` that of the embedded MLflow store.
    ``source`` is how the sweep was named, to find it again: ``act``, or the path of a file.
    ``seed`` is the sampler's; a trial's own is the override ``seed``, from which ``seeds`` trials
    of each configuration count up. ``gpus``, ``memory_bytes`` and ``accelerator_type`` are of
    each worker; ``pack`` measures what a trial needs of a GPU, in place of ``gpus``. More than
    one of the ``workers`` of a trial, or ``ray_train``, let Ray Train carry it. ``frontier`` says
    that the sweep is the variant of its source that sweeps a knob at inference.
    ``time_budget_seconds`` counts from the start of this run, ``max_gpu_hours`` over all runs of
    the sweep; ``grace_seconds`` are what trials then have to end by themselves. ``storage`` is a
    URI at which a copy of ``out`` is kept.
    """

    out: Path
    preset: str
    runs: Path = Path("runs")
    source: str = ""
    overrides: Overrides = field(default_factory=dict)
    trials: int | None = None
    sampler: str | None = None
    scheduler: str | None = None
    concurrency: int | None = None
    local: bool = False
    seed: int = 0
    seeds: int | None = None
    workers: int = 1
    ray_train: bool = False
    time_budget_seconds: float | None = None
    max_gpu_hours: float | None = None
    grace_seconds: float = GRACE_SECONDS
    address: str | None = None
    gpus: float = 0.0
    pack: bool = False
    memory_bytes: int = 0
    accelerator_type: str = ""
    frontier: bool = False
    storage: str = ""

    @property
    def nested(self) -> bool:
        """Whether Ray Train carries each trial."""
        return self.workers > 1 or self.ray_train


def check_room(options: SweepOptions, config: TrialConfig) -> None:
    """Raise ``ConfigError`` for what no trial or no machine can do; a cluster is asked later."""
    if options.local and (options.concurrency or 1) > 1:
        raise ConfigError("--local runs one trial at a time: leave --concurrency out")
    if options.local and options.nested:
        raise ConfigError("--local runs without Ray: leave --workers and --ray-train out")
    if options.local and options.address is not None:
        raise ConfigError("--local runs without Ray: leave --address out")
    if options.pack and options.nested:
        raise ConfigError(
            "--gpus-per-worker auto shares GPUs among trials of one worker: leave --workers and "
            "--ray-train out, or give a number"
        )
    if options.local and (options.gpus or options.pack or options.memory_bytes):
        raise ConfigError(
            "--local reserves no GPU and no memory: leave --gpus-per-worker and "
            "--memory-per-worker out"
        )
    if options.accelerator_type and options.pack:
        raise ConfigError(
            f"--accelerator-type={options.accelerator_type} with --gpus-per-worker auto: Ray did "
            "not start trials with a share of a kind of GPU; give a number, or leave it out"
        )
    if options.accelerator_type and not (options.gpus or options.pack):
        raise ConfigError(
            f"--accelerator-type={options.accelerator_type} would do nothing: no trial reserves "
            "a GPU; give --gpus-per-worker too"
        )
    check_beside_copy(options.out, options.storage)
    _check_gpu_hours(options)
    check_crew(config, options.workers, 1.0 if options.pack else options.gpus)
    if options.address is None:
        places(
            threads=config.threads,
            workers=options.workers,
            n_trials=1,
            asked=options.concurrency,
            n_cores=cores(),
        )


def _check_gpu_hours(options: SweepOptions) -> None:
    asked = options.max_gpu_hours
    if asked is None:
        return
    if not asked > 0:
        raise ConfigError(f"--max-gpu-hours must be above 0, got {asked:g}")
    if not (options.gpus or options.pack):
        raise ConfigError(
            f"--max-gpu-hours={asked:g} would do nothing: no trial reserves a GPU; give "
            "--gpus-per-worker, or --time-budget in its place"
        )


def check_crew(config: TrialConfig, workers: int, gpus: float) -> None:
    """Raise ``ConfigError`` for workers and GPUs (of each) that a trial cannot make use of."""
    if workers < 1:
        raise ConfigError(f"workers must be 1 or more, got {workers}")
    if gpus < 0:
        raise ConfigError(f"gpus-per-worker must be 0 or more, got {gpus:g}")
    if gpus and config.train.device == "cpu":
        raise ConfigError("--gpus-per-worker is of no use with train.device=cpu: use auto or cuda")
    check_shares(config.train, workers)


def chosen_before(record: Mapping[str, Any], folder: Path) -> SweepOptions:
    """Return the options with which the sweep in ``folder`` was run, from its ``sweep.json``."""
    return SweepOptions(
        out=folder,
        preset=record["preset"],
        runs=Path(record.get("runs", "runs")),  # older ones, refused by their version, lack it
        source=record["source"],
        overrides=record["overrides"],
        trials=record["trials"],
        sampler=record["sampler"],
        scheduler=record["scheduler"],
        concurrency=record["concurrency"],
        local=record["local"],
        seed=record["seed"],
        seeds=record["seeds"],
        workers=record["workers"],
        ray_train=record["ray_train"],
        time_budget_seconds=record["time_budget_seconds"],
        max_gpu_hours=record.get("max_gpu_hours"),
        gpus=record["gpus"],
        pack=record.get("pack", False),
        memory_bytes=record.get("memory_bytes", 0),
        accelerator_type=record.get("accelerator_type", ""),
        frontier=record.get("frontier", False),
        storage=record.get("storage", ""),
    )


def choices(options: SweepOptions, search: Search, scheduler_name: str) -> dict[str, Any]:
    """Return what ``sweep.json`` keeps of the choices, beside the search itself."""
    return {
        "source": options.source or search.sweep.name,
        "preset": options.preset,
        "runs": str(options.runs.resolve()),
        "scheduler": scheduler_name,
        "local": options.local,
        "concurrency": options.concurrency,
        "workers": options.workers,
        "ray_train": options.nested,
        "time_budget_seconds": options.time_budget_seconds,
        "max_gpu_hours": options.max_gpu_hours,
        "gpus": options.gpus,
        "pack": options.pack,
        "memory_bytes": options.memory_bytes,
        "accelerator_type": options.accelerator_type,
        "frontier": options.frontier,
        "storage": options.storage,
    }
