"""Every knob of the config does something: changing it changes what it should.

A knob is named with another value, what must differ then, and a base in which it acts.
A new knob without a line here fails the first test.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tiny import write_text
from torch import nn

from bkray.config import TrialConfig
from bkray.data.shards import prepare
from bkray.errors import ConfigError
from bkray.events import EvalDone, Event, StepsDone, TrialEnded, TrialStarted
from bkray.nn.lm import Prediction
from bkray.overrides import build, config_paths, flatten, trial_id
from bkray.train.checkpoint import NAME
from bkray.train.summary import dense_rival, reference_layers
from bkray.train.window import train_window
from bkray.trial import compose, run
from sweeps.ladder import arms

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
BK = {"model.mixer": "bk", "model.n_heads": 4, "model.n_values": 2}
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


def played(config: TrialConfig, folder: Path | None = None) -> list[Event]:
    """Return the events of a trial that is told to stop at its last step, so no speed is taken."""
    events: list[Event] = []

    def stop() -> tuple[str, str] | None:
        return ("pruned", "enough") if events[-1].step == config.train.steps else None

    for event in run(config, folder, stop=stop):
        events.append(event)
    return events


def of(kind: type, config: TrialConfig) -> list[Any]:
    return [event for event in played(config) if isinstance(event, kind)]


def first_losses(config: TrialConfig, folder: Path) -> Any:
    return of(StepsDone, config)[0].loss_nats


def first_loss(config: TrialConfig, folder: Path) -> Any:
    """The loss of step 1, before anything was learnt."""
    return round(first_losses(config, folder)[0], 5)


def last_losses(config: TrialConfig, folder: Path) -> Any:
    """Losses of the last steps: what the optimizer did shows here, and not in step 1."""
    return of(StepsDone, config)[-1].loss_nats


def n_params(config: TrialConfig, folder: Path) -> Any:
    return of(TrialStarted, config)[0].n_params


def arm(config: TrialConfig, folder: Path) -> Any:
    return of(TrialStarted, config)[0].arm


def validation_loss(config: TrialConfig, folder: Path) -> Any:
    return of(EvalDone, config)[0].loss_nats


def evaluated_steps(config: TrialConfig, folder: Path) -> Any:
    return [event.step for event in of(EvalDone, config)]


def evaluated_losses(config: TrialConfig, folder: Path) -> Any:
    return [event.loss_nats for event in of(EvalDone, config)]


def ladder_arms(config: TrialConfig, folder: Path) -> Any:
    return [arm.name for arm in arms(flatten(config))]


def evaluated_numbers(config: TrialConfig, folder: Path) -> Any:
    return sorted(of(EvalDone, config)[0].metrics)


def layers_run(config: TrialConfig, folder: Path) -> Any:
    return of(EvalDone, config)[0].metrics["act/avg_layers_executed"]


def steps_and_tokens(config: TrialConfig, folder: Path) -> Any:
    return [(event.step, event.tokens) for event in of(StepsDone, config)]


def rates(config: TrialConfig, folder: Path) -> Any:
    return [event.lr for event in of(StepsDone, config)]


def halting_weights(config: TrialConfig, folder: Path) -> Any:
    """The halting units after the last step, from the checkpoint."""
    played(config, folder)
    model = torch.load(folder / "checkpoints" / NAME, weights_only=True)["model"]
    return [float(value.sum()) for name, value in model.items() if "halting" in name]


def checkpoint_at_3(config: TrialConfig, folder: Path) -> Any:
    """Whether there is one when the window behind step 3 is done; the trial is left there."""
    for event in run(config, folder):
        if isinstance(event, StepsDone) and event.step == 6:
            break
    return (folder / "checkpoints" / NAME).exists()


def passes_per_step(config: TrialConfig, folder: Path) -> Any:
    trial = compose(config, prepare(config.data, config.model.n_seq), None)
    rows: list[int] = []
    trial.model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    window = train_window(trial)
    return rows[: len(rows) // len(window.loss_nats)]


def sites_per_pass(config: TrialConfig, folder: Path) -> Any:
    """Sites that the model sees at once in the first passes of training."""
    trial = compose(config, prepare(config.data, config.model.n_seq), None)
    sites: list[int] = []
    trial.model.register_forward_pre_hook(lambda _, args: sites.append(args[0].shape[1]))
    train_window(trial)
    return sites[:4]


def expected_length(config: TrialConfig, folder: Path) -> Any:
    return of(StepsDone, config)[-1].metrics["train/expected_length"]


def rows_per_pass(config: TrialConfig, folder: Path) -> Any:
    """Rows that the layers see at once in evaluation."""
    trial = compose(config, prepare(config.data, config.model.n_seq), None)
    rows: list[int] = []
    trial.model.model.blocks[0].register_forward_pre_hook(
        lambda _, args: rows.append(len(args[0]))
    )
    trial.model.eval()(torch.zeros(6, config.model.n_seq, dtype=torch.long))
    return rows


def dtype(config: TrialConfig, folder: Path) -> Any:
    trial = compose(config, prepare(config.data, config.model.n_seq), None)
    return next(trial.model.parameters()).dtype


def device(config: TrialConfig, folder: Path) -> Any:
    try:
        trial = compose(config, prepare(config.data, config.model.n_seq), None)
    except ConfigError as refused:
        return str(refused)
    return str(trial.device)


def vocabulary(config: TrialConfig, folder: Path) -> Any:
    return prepare(config.data, config.model.n_seq).vocab_size


def fingerprint(config: TrialConfig, folder: Path) -> Any:
    return prepare(config.data, config.model.n_seq).fingerprint


def threads(config: TrialConfig, folder: Path) -> Any:
    played(config)
    return torch.get_num_threads()


def interventions(config: TrialConfig, folder: Path) -> Any:
    return of(TrialEnded, config)[0].summary["interventions"]


def rival_depth(config: TrialConfig, folder: Path) -> Any:
    return reference_layers(config)


def rival_params(config: TrialConfig, folder: Path) -> Any:
    return sum(p.numel() for p in dense_rival(config, 256).parameters())


class Knob(NamedTuple):
    """``path=other`` over ``SMALL`` and ``base`` changes what is ``seen``."""

    path: str
    other: Any
    seen: Callable[[TrialConfig, Path], Any]
    base: Mapping[str, Any] = {}


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
    Knob("model.semiseparable_rank", 2, n_params, BK),
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
    Knob("seed", 1, first_losses),
    Knob("threads", 2, threads),
    Knob("arm", "dense-2", arm),
]


def two_configs(knob: Knob, text: Path, folder: Path) -> tuple[TrialConfig, TrialConfig]:
    """Return the base and the base with the knob changed."""
    base = {**SMALL, "data.corpus": str(text), **knob.base}
    other = knob.other
    if knob.path == "data.corpus":
        other = str(write_text(folder / other, seed=1))
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
