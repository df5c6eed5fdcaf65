"""Runs a sweep: resolves it, writes ``sweep.json``, and lets a carrier run its trials."""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from bkray import trial
from bkray.atomic import write_json
from bkray.cluster import packing, record
from bkray.cluster.budget import Budget
from bkray.cluster.carriers import Parts, carry_here
from bkray.cluster.crew import Crew
from bkray.cluster.driver import Driver, Identify
from bkray.cluster.folder import check, claimed
from bkray.cluster.interrupt import on_interrupt
from bkray.cluster.ledger import Ledger
from bkray.cluster.options import SweepOptions as SweepOptions
from bkray.cluster.options import check_room, choices
from bkray.cluster.packing import Probe
from bkray.cluster.pruning import Judge, Pruner, pruner
from bkray.cluster.room import room_in
from bkray.cluster.samplers import UNLEARNING
from bkray.cluster.schedulers import choose
from bkray.cluster.search import Proposal, Search
from bkray.cluster.session import places, session
from bkray.config import TrialConfig
from bkray.errors import ConfigError
from bkray.overrides import acting, build
from bkray.sinks.parquet import ParquetSink
from bkray.sinks.sink import SweepView
from bkray.sweep import Sweep


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOutcome:
    """How a sweep ended: trials per outcome, and what ended it early, if anything.

    ``n_reused`` proposals were equal to earlier ones and not trained again. ``first_failure`` is
    the reason of the first trial that failed or ran out of memory; ``over_budget`` names the
    budget that is spent; ``always_fails`` is the traceback of the error that the first trials had
    in common, and that ended the sweep.
    """

    folder: Path
    outcomes: Mapping[str, int]
    n_planned: int
    n_reused: int
    interrupted: bool
    over_budget: str
    first_failure: str
    always_fails: str = ""


PARTS = Parts(trial.run, ParquetSink)


def run_sweep(
    sweep: Sweep,
    options: SweepOptions,
    views: Sequence[SweepView] = (),
    *,
    resume: bool = False,
    parts: Parts = PARTS,
    identify: Identify = trial.identify,
    probe: Probe = packing.probe,
) -> SweepOutcome:
    """Run a sweep into the folder ``options.out``; ``views`` see every event and stay open.

    Args:
        resume: go on with the sweep in the folder, which else must be new: trials that ended are
            kept, trials that were begun go on from their checkpoints.
        parts, identify, probe: how a trial runs, is written down, gets its id and shows what it
            takes of a GPU; tests bring their own.

    Raises:
        ConfigError, DataError: what was asked for cannot be run.
        ResumeError: the folder already holds a sweep; or none, or another one, to be resumed; or
            another process runs it.
    """
    folder = options.out.resolve()
    check(folder, resume=resume)
    search = resolve(sweep, options)
    config = base_config(search)
    chosen = choose(options.scheduler, sweep)
    check_room(options, config)
    _, data_hash = identify(config)
    present = record.describe(search, data_hash=data_hash) | choices(options, search, chosen)
    token = uuid.uuid4().hex
    with room_in(folder), claimed(folder, token, resume=resume) as stored:
        if stored is not None:
            present = record.resumed(folder, stored, present)
        write_json(folder / record.NAME, present)
        ledger = Ledger(folder, search)
        driver = Driver(
            ledger,
            folder,
            views,
            identify=identify,
            budget=_budget(options),
            token=token,
            workers=options.workers,
            judge=Judge(chosen, _rule(chosen, config, options.seed)),
        )
        try:
            if options.local:
                with on_interrupt(driver.stop):
                    carry_here(driver, parts)
            else:
                _carry_on_tune(driver, parts, options, search.n_planned, config, probe)
        finally:
            driver.close()
            ledger.close()
    return SweepOutcome(
        folder=folder,
        outcomes=dict(driver.outcomes),
        n_planned=search.n_planned,
        n_reused=ledger.n_reused,
        interrupted=driver.stopping and not driver.always_fails,
        over_budget=driver.over_budget,
        first_failure=driver.first_failure,
        always_fails=driver.always_fails,
    )


def planned(sweep: Sweep, options: SweepOptions) -> list[Proposal]:
    """Return the configurations known before a trial runs: rivals, first points, the grid.

    Samplers that do not learn from results are known to their end.
    """
    search = resolve(sweep, options)
    n_known = len(search.rivals()) + len(search.points())
    if search.sampler in UNLEARNING:
        n_known = search.n_configurations
    ledger = Ledger(None, search)
    try:
        known = list(islice(iter(ledger.ask, None), n_known))
        ledger.ask()  # a space that proposes what no config allows is told now as well
        return known
    finally:
        ledger.close()


def resolve(sweep: Sweep, options: SweepOptions) -> Search:
    """Return the sweep with its preset and the user's choices laid over it.

    Raises:
        ConfigError: a choice that is not allowed, or one that leaves nothing to run.
    """
    if options.preset not in sweep.presets:
        known = ", ".join(sweep.presets)
        raise ConfigError(f"preset must be one of {known}, got {options.preset!r}")
    preset = sweep.presets[options.preset]
    sampler = options.sampler or preset.sampler or sweep.sampler
    whole_grid = sampler == "grid" and sampler != preset.sampler
    trials = None if whole_grid else preset.trials
    search = Search(
        sweep=sweep,
        preset=preset,
        overrides=options.overrides,
        sampler=sampler,
        seed=options.seed,
        n_trials=trials if options.trials is None else options.trials,
        seeds=preset.seeds if options.seeds is None else options.seeds,
    )
    if search.n_configurations == 0:
        raise ConfigError("trials=0 and no rivals leave nothing to run: give --trials 1 or more")
    return search


def base_config(search: Search) -> TrialConfig:
    """Return the config of a trial before the space has answered: its data, threads and length."""
    return build(acting(search.base))


def _rule(name: str, config: TrialConfig, seed: int) -> Pruner | None:
    """Return the pruning rule for trials like ``config``: none before the first evaluation."""
    per_step = config.train.batch_size * config.n_seq
    return pruner(
        name,
        grace_tokens=min(config.train.eval_every, config.train.steps) * per_step,
        max_tokens=config.train.steps * per_step,
        seed=seed,
    )


def _budget(options: SweepOptions) -> Budget:
    seconds = options.time_budget_seconds
    return Budget(
        options.out.resolve(),
        deadline=None if seconds is None else time.time() + seconds,
        max_gpu_hours=options.max_gpu_hours,
        grace_seconds=options.grace_seconds,
    )


def _carry_on_tune(
    driver: Driver,
    parts: Parts,
    options: SweepOptions,
    n_planned: int,
    config: TrialConfig,
    probe: Probe,
) -> None:
    crew = Crew(
        workers=options.workers,
        threads=config.threads,
        gpus=1.0 if options.pack else options.gpus,
        memory_bytes=options.memory_bytes,
        accelerator_type=options.accelerator_type,
    )
    needs = crew.needs(nested=options.nested)
    with session(address=options.address, threads=crew.threads, needs=needs) as ray:
        from bkray.cluster.tune_carrier import Plan, carry_on_tune

        there_is = ray.cluster_resources()
        n_cores = int(there_is.get("CPU", 0))
        n_places = places(
            threads=crew.threads,
            workers=crew.workers,
            n_trials=n_planned,
            asked=options.concurrency,
            n_cores=n_cores,
        )
        probed = None
        if options.pack:
            kind = options.accelerator_type or None
            gpu_worker = ray.remote(num_gpus=1, max_calls=1, accelerator_type=kind)(probe)
            probed = ray.get(gpu_worker.remote(config))
        if crew.gpus:  # Tune would let nested trials wait for a GPU inside their run
            per_gpu = probed.per_gpu if probed else 1
            n_places = min(n_places, int(per_gpu * there_is["GPU"] / needs["GPU"]))
        plan = Plan(
            concurrency=n_places,
            crew=crew,
            nested=options.nested,
            probed=probed,
        )
        with on_interrupt(driver.stop):  # in here, for Ray sets a signal's handler of its own
            carry_on_tune(driver, parts, plan, str(options.out.resolve() / ".tune"))
