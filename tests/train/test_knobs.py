"""Every knob of the config does something: changing it changes what it should.

A knob is named with another value, what must differ then, and a base in which it acts.
A new knob without a line here fails the first test.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from generators import (
    NOT_MADE,
    TINY,
    frames_generated,
    rows_per_class,
    variance_of_samples,
    write_embeddings,
    write_generator,
)
from observed import (
    arm,
    checkpoint_at_3,
    device,
    dtype,
    evaluated_losses,
    evaluated_numbers,
    evaluated_steps,
    expected_length,
    fingerprint,
    first_loss,
    first_losses,
    halting_weights,
    interventions,
    ladder_arms,
    last_losses,
    late_losses_of_cells,
    layers_run,
    lengths_timed,
    measured_cells,
    n_params,
    passes_per_step,
    probed_items,
    rates,
    rival_depth,
    rival_mixer,
    rival_params,
    rows_per_pass,
    rows_timed,
    sites_per_pass,
    steps_and_tokens,
    threads,
    validation_loss,
    vocabulary,
)
from tiny import write_text
from torch import nn

from bkray.config import TrialConfig
from bkray.nn.lm import Prediction
from bkray.overrides import build, config_paths, flatten, trial_id

SMALL = {
    "model.mixer": "linear_recurrence",
    "model.d_model": 16,
    "model.n_layers": 2,
    "model.n_seq": 16,
    "model.d_hidden": 24,
    "train.steps": 6,
    "train.batch_size": 4,
    "train.eval_every": 3,
    "train.eval_windows": 4,
    "train.checkpoint_every": 6,
    "train.device": "cpu",
    "optimizer.warmup_steps": 2,
}
CLIMBING = {"ladder.lengths": "4,16"}
LONGER = {"mismatch.lengths": "32", "mismatch.windows": 4, "mismatch.items": 4}
BK = {"model.mixer": "bk", "model.n_heads": 4, "model.n_values": 2}
MAMBA = {"model.mixer": "mamba"}
ATTENTION = {"model.mixer": "attention", "model.n_heads": 2}
EXPERTS = {"model.n_experts": 4}
SCATTERING = {**BK, **EXPERTS, "model.router": "scattering"}
MONITORED = {**BK, "train.monitor": "birman_schwinger"}
ACT = {"model.depth": "act", "model.n_layers": 3}
EXIT = {"model.depth": "exit"}
BOTH = {"model.depth": "act_exit", "model.n_layers": 3}
SPARSE = {"model.sparsity": "learned"}
LEARNED = {"model.length": "learned"}
SPIKING = {"optimizer.lr": 3.0, "optimizer.warmup_steps": 0, "train.steps": 12}
RECALL = {"data.corpus": "recall", "data.max_bytes": 4096}
WORDS = {"data.tokenizer": "words", "data.vocab_size": 20}
OWN = {
    "model.mixer": None,
    "model.d_model": None,
    "model.n_layers": None,
    "model.d_hidden": None,
    "model.build": f"{__name__}:build_wide",
}


class Table(nn.Module):
    """A table of bigrams through ``width`` channels: the smallest own model."""

    causal = True

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(vocab_size, width), nn.Linear(width, vocab_size)

    def forward(self, tokens: torch.Tensor) -> Prediction:
        return Prediction(self.head(self.embedding(tokens)))


def build_wide(config: TrialConfig, vocab_size: int) -> nn.Module:
    return Table(vocab_size, int((config.model.options or {}).get("width", 4)))


def build_narrow(config: TrialConfig, vocab_size: int) -> nn.Module:
    return Table(vocab_size, 2)


class Knob(NamedTuple):
    """``path=other`` over ``small`` and ``base`` changes what is ``seen``."""

    path: str
    other: Any
    seen: Callable[[TrialConfig, Path], Any]
    base: Mapping[str, Any] = {}
    small: Mapping[str, Any] = SMALL


def of_generator(
    path: str, other: Any, seen: Callable[[TrialConfig, Path], Any], **base: Any
) -> Knob:
    return Knob(path, other, seen, base, TINY)


KNOBS = [
    Knob("model.build", f"{__name__}:build_narrow", n_params, OWN),
    Knob("model.options", {"width": 8}, n_params, OWN),
    Knob("model.n_seq", 8, steps_and_tokens),
    Knob("model.mixer", "attention", n_params),
    Knob("model.depth", "act", n_params),
    Knob("model.position", "learned", n_params),
    Knob("model.position", "none", first_losses, ATTENTION),
    Knob("model.d_model", 20, n_params),
    Knob("model.n_layers", 3, n_params),
    Knob("model.n_heads", 2, n_params, BK),
    Knob("model.n_heads", 4, first_losses, ATTENTION),
    Knob("model.n_values", 3, n_params, BK),
    Knob("model.n_values", 0, n_params, BK),
    Knob("model.energies", "zero", first_losses, BK),
    Knob("model.semiseparable_rank", 2, n_params, BK),
    Knob("model.d_state", 4, n_params, MAMBA),
    Knob("model.expand", 1, n_params, MAMBA),
    Knob("model.d_hidden", 32, n_params),
    Knob("model.dropout", 0.5, first_losses),
    Knob("model.n_experts", 2, n_params),
    Knob("model.router", "scattering", n_params, {**BK, **EXPERTS}),
    Knob("model.router_head", 2, first_losses, SCATTERING),
    Knob("model.router_resonance", 0.0, first_losses, SCATTERING),
    Knob("model.top_k", 2, first_loss, EXPERTS),
    Knob("model.balance_weight", 10.0, last_losses, EXPERTS),
    Knob("model.act_threshold", 0.5, layers_run, ACT),
    Knob("model.act_lambda", 0.5, halting_weights, ACT),
    Knob("model.halt_lr_factor", 3.0, halting_weights, ACT),
    Knob("model.mixer_scale", 2, first_losses),
    Knob("model.multiscale", True, first_losses, {"model.n_layers": 3}),
    Knob(
        "model.act_scales",
        "each",
        n_params,
        {"model.depth": "act", "model.multiscale": True, "model.n_layers": 4},
    ),
    Knob("model.sparsity", "learned", n_params),
    Knob("model.sparsity_lambda", 5.0, last_losses, SPARSE),
    Knob("model.exit_heads", "own", n_params, EXIT),
    Knob("model.exit_rule", "entropy", validation_loss, {**EXIT, "model.exit_threshold": 0.01}),
    Knob("model.exit_threshold", 0.01, validation_loss, EXIT),
    Knob("model.exit_weight", 3.0, last_losses, EXIT),
    Knob("model.depth", "act_exit", last_losses, ACT),
    Knob("model.depth", "act_exit", n_params, EXIT),
    Knob("model.act_threshold", 0.5, layers_run, BOTH),
    Knob("model.act_lambda", 0.5, halting_weights, BOTH),
    Knob("model.halt_lr_factor", 3.0, halting_weights, BOTH),
    Knob("model.exit_heads", "own", n_params, BOTH),
    Knob("model.exit_rule", "entropy", layers_run, {**BOTH, "model.exit_threshold": 0.01}),
    Knob("model.exit_threshold", 0.01, layers_run, BOTH),
    Knob("model.exit_weight", 3.0, last_losses, BOTH),
    Knob("model.length", "learned", n_params),
    Knob("model.length_layout", "exponential", expected_length, LEARNED),
    Knob("model.length_bins", 4, n_params, LEARNED),
    Knob("model.length_list", "4,16", n_params, LEARNED),
    Knob("model.length_penalty", 5.0, expected_length, LEARNED),
    Knob("model.length_beyond", "shallow", n_params, LEARNED),
    Knob("model.length_scope", "full", expected_length, LEARNED),
    Knob("model.length_grouping", "per_sequence", rows_per_pass, LEARNED),
    Knob("model.length_gradient", "gumbel", expected_length, LEARNED),
    Knob("model.length_train_cut", 0.9, first_losses, LEARNED),
    Knob("data.corpus", "other.txt", fingerprint),
    Knob("data.tokenizer", "words", vocabulary),
    Knob("data.vocab_size", 30, vocabulary, WORDS),
    Knob("data.max_bytes", 2048, fingerprint),
    Knob("data.recall_distance", 16, fingerprint, RECALL),
    Knob("optimizer.lr", 0.02, rates),
    Knob("optimizer.final_lr_fraction", 0.5, rates),
    Knob("optimizer.warmup_steps", 5, rates),
    Knob("optimizer.weight_decay", 5.0, last_losses),
    Knob("optimizer.beta1", 0.5, last_losses),
    Knob("optimizer.beta2", 0.5, last_losses),
    Knob("optimizer.clip_norm", 1e-9, last_losses),
    Knob("train.steps", 9, steps_and_tokens),
    Knob("train.batch_size", 8, steps_and_tokens),
    Knob("train.accumulation", 2, passes_per_step),
    Knob("train.chunk", 5, sites_per_pass),
    Knob("train.eval_every", 6, evaluated_steps),
    Knob("train.eval_windows", 8, validation_loss),
    Knob("train.checkpoint_every", 3, checkpoint_at_3),
    Knob("train.precision", "float64", dtype),
    Knob("train.device", "cuda", device),
    Knob("train.speed_reference_layers", 5, rival_depth),
    Knob("train.speed_reference_experts", 1, rival_params, EXPERTS),
    Knob("train.speed_rows", 3, rows_timed),
    Knob("train.speed_reference_mixer", "attention", rival_mixer),
    Knob("train.speed_lengths", "64", lengths_timed),
    Knob("train.on_spike", "skip_step", interventions, SPIKING),
    Knob("train.on_spike", "rewind", interventions, SPIKING),
    Knob("train.max_interventions", 1, interventions, {**SPIKING, "train.on_spike": "skip_step"}),
    Knob("train.max_interventions", 1, interventions, {**SPIKING, "train.on_spike": "rewind"}),
    Knob("train.monitor", "birman_schwinger", evaluated_numbers, BK),
    Knob("train.precision_upgrade", 1.5, last_losses, MONITORED),
    Knob("train.eval_stretch", 32, validation_loss),
    Knob("ladder.lengths", "4,16", evaluated_losses),
    Knob("ladder.mode", "carry", ladder_arms, CLIMBING),
    Knob("ladder.lr_rule", "search", ladder_arms, CLIMBING),
    Knob("ladder.batch", "rows", steps_and_tokens, CLIMBING),
    Knob("ladder.monitor", "both", ladder_arms, {**CLIMBING, **MONITORED}),
    Knob("mismatch.lengths", "32,64", measured_cells, LONGER),
    Knob("mismatch.strategies", "truncate", measured_cells, LONGER),
    Knob("mismatch.overlap", 0.25, late_losses_of_cells, LONGER),
    Knob("mismatch.windows", 8, late_losses_of_cells, LONGER),
    Knob("mismatch.items", 8, probed_items, LONGER),
    of_generator("generator.training_sequence_length", 4, n_params),
    of_generator("generator.output_sequence_length", 16, frames_generated),
    of_generator("generator.latent_dim", 3, n_params),
    of_generator("generator.hidden_dim", 8, n_params),
    of_generator("generator.upsampling", "learned", n_params),
    of_generator("generator.network", "bk", n_params),
    of_generator(
        "generator.conditioned",
        False,
        n_params,
        **{"generator.synthetic_per_class": None, "data.n_per_class": 100},
    ),
    of_generator("generator.augmentation", "masking", first_losses),
    of_generator("generator.augmentation", "noise", first_losses),
    of_generator("generator.augmentation", "mixup", first_losses),
    of_generator("generator.kl_weight", 3.0, last_losses),
    of_generator("generator.kl_warmup_steps", 0, last_losses),
    of_generator("generator.synthetic_per_class", 2, rows_per_class),
    of_generator("generator.prior", "standard", variance_of_samples),
    of_generator("generator.pretrained", "other.pt", first_losses),
    of_generator("data.embeddings", "other.npy", fingerprint, **NOT_MADE),
    of_generator("data.spectrum", 0, fingerprint),
    of_generator("data.n_frames", 48, fingerprint),
    of_generator("data.n_channels", 3, fingerprint),
    of_generator("data.n_classes", 4, fingerprint),
    of_generator("data.n_per_class", 12, fingerprint),
    Knob("seed", 1, first_losses),
    Knob("threads", 2, threads),
    Knob("arm", "dense-2", arm),
]


def two_configs(knob: Knob, text: Path, folder: Path) -> tuple[TrialConfig, TrialConfig]:
    """Return the base and the base with the knob changed."""
    corpus = {"data.corpus": str(text)} if knob.small is SMALL else {}
    base, other = {**knob.small, **corpus, **knob.base}, knob.other
    if knob.path == "data.corpus":
        other = str(write_text(folder / other, seed=1))
    elif knob.path == "generator.pretrained":
        other = str(write_generator(folder / other))
    elif knob.path == "data.embeddings":
        base[knob.path] = str(write_embeddings(folder / "one.npy", seed=0))
        other = str(write_embeddings(folder / other, seed=1))
    return build(base), build({**base, knob.path: other})


def test_every_knob_has_a_line() -> None:
    assert {knob.path for knob in KNOBS} == set(config_paths())


@pytest.mark.parametrize("knob", KNOBS, ids=lambda knob: f"{knob.path}={knob.other}")
def test_changing_a_knob_changes_what_it_should(knob: Knob, text: Path, tmp_path: Path) -> None:
    base, changed = two_configs(knob, text, tmp_path)
    before = knob.seen(base, tmp_path / "base")
    assert knob.seen(base, tmp_path / "again") == before, "and nothing else changes it"
    assert knob.seen(changed, tmp_path / "changed") != before


@pytest.mark.parametrize("knob", KNOBS, ids=lambda knob: f"{knob.path}={knob.other}")
def test_changing_a_knob_changes_the_trials_id(knob: Knob, text: Path, tmp_path: Path) -> None:
    base, changed = two_configs(knob, text, tmp_path)
    assert trial_id(base, "data", "1") != trial_id(changed, "data", "1")


ONLY_LATER = (
    "optimizer.",
    "model.balance_weight",
    "model.act_lambda",
    "model.halt_lr_factor",
    "model.exit_weight",
    "model.sparsity_lambda",
    "model.length_penalty",
    "model.length_gradient",
)


@pytest.mark.parametrize(
    "knob",
    [knob for knob in KNOBS if knob.path.startswith(ONLY_LATER)],
    ids=lambda knob: knob.path,
)
def test_knobs_of_the_optimizer_leave_the_very_first_loss_alone(
    knob: Knob, text: Path, tmp_path: Path
) -> None:
    base, changed = two_configs(knob, text, tmp_path)
    assert first_losses(base, tmp_path)[0] == first_losses(changed, tmp_path)[0]


@pytest.mark.parametrize(
    "path",
    [
        "train.accumulation",
        "train.chunk",
        "train.eval_every",
        "train.eval_windows",
        "train.eval_stretch",
        "threads",
        "arm",
    ],
)
def test_knobs_of_bookkeeping_leave_the_training_alone(
    path: str, text: Path, tmp_path: Path
) -> None:
    knob = next(knob for knob in KNOBS if knob.path == path)
    base, changed = (
        build({**flatten(config), "train.precision": "float64"})
        for config in two_configs(knob, text, tmp_path)
    )
    expected = first_losses(base, tmp_path)
    assert first_losses(changed, tmp_path)[:3] == pytest.approx(expected, rel=1e-12)
