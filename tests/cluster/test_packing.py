"""Small trials share a GPU by what one of them took, large ones get it whole."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch
from standin import PARTS, identify, point, sweep_of

from bkray.cluster.carriers import Job, Parts
from bkray.cluster.crew import Crew
from bkray.cluster.options import SweepOptions
from bkray.cluster.packing import CONTEXT_BYTES, MARGIN, Probed, cap, fits, probe, share
from bkray.cluster.tune_carrier import Plan
from bkray.cluster.tuner import run_sweep
from bkray.config import TrialConfig
from bkray.errors import ConfigError
from bkray.events import Event
from bkray.overrides import build
from bkray.sinks.parquet import ParquetSink
from bkray.train import attempts
from bkray.train.attempts import Failure
from bkray.train.run import Stop

GIB = 2**30


@pytest.mark.parametrize("total_gib", [8, 24, 80])
@pytest.mark.parametrize("peak_gib", [0.1, 0.7, 3.0, 7.5, 200.0])
def test_what_fits_has_its_peak_and_no_gpu_is_given_twice(peak_gib: float, total_gib: int) -> None:
    peak, total = int(peak_gib * GIB), total_gib * GIB
    n = fits(peak, total)
    assert n * share(n) <= 1.0
    assert n == 1 or n * (MARGIN * peak + CONTEXT_BYTES) <= total
    assert (n + 1) * (MARGIN * peak + CONTEXT_BYTES) > total, "one more would fit"
    if n > 1:
        allowed = cap(share(n), total) * total
        assert allowed >= peak
        assert n * (allowed + CONTEXT_BYTES) <= total * (1 + 1e-9)


def test_a_share_below_what_cuda_takes_is_refused() -> None:
    assert cap(1.0, 8 * GIB) == 1.0
    with pytest.raises(ConfigError, match=r"gpus-per-worker=0\.05 of 8 GiB"):
        cap(0.05, 8 * GIB)


def test_whoever_may_need_more_than_the_probe_gets_a_whole_gpu() -> None:
    probed = Probed(TrialConfig(), peak_bytes=GIB, total_bytes=8 * GIB)
    assert probed.per_gpu == 4
    n_seq = TrialConfig().model.n_seq
    small = {"model.n_seq": n_seq // 2, "optimizer.lr": 0.1}
    assert probed.gpus(build(small)) == 0.25
    for larger in (
        {"model.n_seq": 2 * n_seq},
        {"model.d_model": 4096},
        {"model.n_layers": 99},
        {"model.d_hidden": 4096},
        {"model.n_heads": 64},
        {"model.dropout": 0.1},
        {"model.depth": "exit"},
        {"train.precision": "float64"},
    ):
        assert probed.gpus(build(larger)) == 1.0, larger


def test_generators_share_by_what_they_are() -> None:
    length, latent, hidden = (
        f"generator.{name}" for name in ("training_sequence_length", "latent_dim", "hidden_dim")
    )
    base = {length: 16, latent: 64, hidden: 128}
    probed = Probed(build(base), peak_bytes=GIB, total_bytes=8 * GIB)
    for small in ({}, {latent: 32}, {length: 8}, {"optimizer.lr": 0.1, "seed": 3}):
        assert probed.gpus(build({**base, **small})) == 0.25, small
    for larger in ({latent: 256}, {length: 64}, {hidden: 256}, {"generator.network": "bk"}):
        assert probed.gpus(build({**base, **larger})) == 1.0, larger
    assert probed.gpus(TrialConfig()) == 1.0, "a language model is something else"


def test_who_ran_out_of_a_share_is_tried_again_on_a_whole_gpu(tmp_path: Path) -> None:
    crew = Crew(workers=1, threads=1, gpus=1.0)
    plan = Plan(concurrency=4, crew=crew, nested=False, probed=quarter(TrialConfig()))
    job = Job(
        number=0,
        trial_id="a",
        data_hash="",
        sweep="t",
        overrides={},
        folder=tmp_path / "a",
        sweep_folder=tmp_path,
        deadline=None,
    )
    assert plan.gpus_of(job) == 0.25
    attempts.note(job.folder, Failure("failed", 3, "the worker died"))
    assert plan.gpus_of(job) == 0.25
    attempts.note(job.folder, Failure("oom", 3, "CUDA out of memory"), splits=True)
    assert plan.gpus_of(job) == 1.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_nothing_is_measured() -> None:
    with pytest.raises(ConfigError, match="torch sees none"):
        probe(TrialConfig())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_probe_measures_what_a_trial_takes(text: Path) -> None:
    small = build({"data.corpus": str(text), "train.device": "cuda"})
    large = replace(small, train=replace(small.train, batch_size=16 * small.train.batch_size))
    assert 0 < probe(small).peak_bytes < probe(large).peak_bytes < probe(small).total_bytes


def noting(config: TrialConfig, folder: Path, *, sweep: str, stop: Stop) -> Iterator[Event]:
    """The stand-in, which writes down what Ray has given it."""
    given = ray.get_runtime_context().get_assigned_resources()
    (folder / "gpus").write_text(str(given.get("GPU", 0.0)))
    yield from PARTS.run_trial(config, folder, sweep=sweep, stop=stop)


def quarter(config: TrialConfig) -> Probed:
    return Probed(config, peak_bytes=GIB, total_bytes=8 * GIB)


@pytest.mark.slow
def test_ray_gives_shares_to_small_trials_and_whole_gpus_to_long_ones(
    two_gpus: None, tmp_path: Path
) -> None:
    n_seq = TrialConfig().model.n_seq
    long = {**point(0.2), "model.n_seq": 2 * n_seq}
    base = {"train.steps": 40, "train.eval_every": 10, "model.dropout": 0.5}
    options = SweepOptions(
        out=tmp_path,
        preset="p",
        scheduler="none",
        pack=True,
    )
    ended = run_sweep(
        sweep_of(point(0.1), long, point(0.3), n_trials=3, base=base),
        options,
        parts=Parts(noting, ParquetSink),
        identify=identify,
        probe=quarter,
    )
    assert ended.outcomes == {"ok": 3}
    given = [float(path.read_text()) for path in tmp_path.glob("trials/*/gpus")]
    assert sorted(given) == [0.25, 0.25, 1.0]
