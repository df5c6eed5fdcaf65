"""Trials on a small text: events, exact resume, divergence, and the columns that are left."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import write_text
from trials import KNOWN, SHORT, numbers, of, play, short_config, weights

from bkray.atomic import write_json
from bkray.config import TrialConfig
from bkray.data.shards import prepare
from bkray.errors import ConfigError, DataError, ResumeError
from bkray.events import (
    EvalDone,
    Event,
    Measured,
    MemoryPeak,
    Saving,
    StepsDone,
    TrialEnded,
    TrialStarted,
    rows,
)
from bkray.nn.lm import Prediction
from bkray.overrides import build, flatten
from bkray.report.tables import COLUMNS
from bkray.train import checkpoint
from bkray.trial import compose, evaluate_checkpoint, identify, run, warm_up

ELSEWHERE = {
    *("advice", "interventions", "avg_predicted_length"),
    *("schatten_s1", "schatten_s2", "condition_number"),
}
"""What a summary holds beside that."""


@pytest.fixture(scope="module")
def finished(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event]]:
    """One trial of every kind would be slow; this one is looked at from many sides."""
    folder = tmp_path_factory.mktemp("finished") / "trial"
    return folder, play(short_config(text, depth="act", speed_reference_layers=5), folder)


def test_events_come_in_order_and_each_has_its_place(finished: tuple[Path, list[Event]]) -> None:
    events = finished[1]
    assert [type(event) for event in events] == [
        TrialStarted,
        *(StepsDone, Saving, StepsDone),  # 1..10, 11..16
        *(StepsDone, MemoryPeak, EvalDone, Saving),  # 17..20
        *(StepsDone, Saving, StepsDone),  # 21..30, 31..32
        *(StepsDone, MemoryPeak, EvalDone, Saving),  # 33..40
        *(Measured, TrialEnded),
    ]
    assert [event.step for event in of(StepsDone, events)] == [10, 16, 20, 30, 32, 40]
    assert [event.step for event in of(EvalDone, events)] == [20, 40]
    assert sum(len(event.loss_nats) for event in of(StepsDone, events)) == 40
    assert of(StepsDone, events)[-1].tokens == 40 * 4 * 16
    assert of(StepsDone, events)[-1].lr == pytest.approx(0.01 * 0.1)


def test_the_start_says_who_the_trial_is(text: Path, finished: tuple[Path, list[Event]]) -> None:
    started = of(TrialStarted, finished[1])[0]
    config = short_config(text, depth="act", speed_reference_layers=5)
    assert (started.trial_id, started.data_hash) == identify(config)
    assert (started.sweep, started.arm, started.seed, started.step) == ("a sweep", "", 3, 0)
    assert started.attempt == 1
    assert started.causal
    assert started.config["model.act_threshold"] == 0.99
    saved = weights(finished[0], started.trial_id)
    assert started.n_params == sum(value.numel() for value in saved.values())


"""The columns of trials.parquet that one trial by itself can know."""


def test_the_summary_is_the_columns_that_a_trial_can_know_and_advice_for_people(
    finished: tuple[Path, list[Event]],
) -> None:
    said = finished[1][-1].summary  # type: ignore[union-attr]
    assert set(said) == KNOWN | ELSEWHERE
    assert set(COLUMNS) >= KNOWN
    assert all(said[name] is not None for name in KNOWN)
    assert said["avg_predicted_length"] is None, "its length is fixed"
    assert said["schatten_s1"] is said["schatten_s2"] is said["condition_number"] is None


def test_the_summary_says_what_the_events_said(finished: tuple[Path, list[Event]]) -> None:
    events = finished[1]
    ended = events[-1]
    assert isinstance(ended, TrialEnded)
    assert (ended.outcome, ended.reason, ended.step) == ("ok", "", 40)
    said = ended.summary
    evaluations = of(EvalDone, events)
    best = min(event.loss_nats for event in evaluations)
    last = evaluations[-1]
    norms = [norm for event in of(StepsDone, events) for norm in event.grad_norm]
    mean = sum(norms) / 40
    expected = {
        "causal": True,
        "steps": 40,
        "tokens": 40 * 4 * 16,
        "seq_len": 16,
        "n_params": events[0].n_params,  # type: ignore[union-attr]
        "best_val_loss_nats": best,
        "best_val_ppl": math.exp(best),
        "final_val_loss_nats": last.loss_nats,
        "avg_layers_executed": last.metrics["act/avg_layers_executed"],
        "ponder_cost": last.metrics["act/ponder_cost"],
        "speedup_estimate": 5 / last.metrics["act/avg_layers_executed"],
        "speedup_measured": of(Measured, events)[0].metrics["speed/speedup_measured"],
        "grad_norm_mean": mean,
        "grad_norm_std": math.sqrt(sum((norm - mean) ** 2 for norm in norms) / 40),
        "train_seconds": sum(event.window_seconds for event in of(StepsDone, events)),
        "spike_count": 0,
        "spikes_per_1000_steps": 0.0,
    }
    assert {name: said[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert said["tokens_per_second"] == pytest.approx(2560 / said["train_seconds"])
    assert said["peak_memory_mib"] > 10
    assert last.loss_nats < evaluations[0].loss_nats, "it learns"


def test_all_numbers_of_a_summary_are_plain_python(finished: tuple[Path, list[Event]]) -> None:
    for value in finished[1][-1].summary.values():  # type: ignore[union-attr]
        assert value is None or type(value) in (int, float, bool, str)


def test_the_last_step_is_evaluated_and_saved_wherever_it_falls(
    text: Path, tmp_path: Path
) -> None:
    config = short_config(text, eval_every=8, checkpoint_every=8, **{"train.steps": 13})
    events = play(config, tmp_path)
    assert [event.step for event in of(StepsDone, events)] == [8, 13]
    assert [event.step for event in of(EvalDone, events)] == [8, 13]
    state = checkpoint.read(tmp_path / "checkpoints" / checkpoint.NAME)
    assert state is not None
    assert state["progress"]["step"] == 13


@pytest.mark.parametrize("mixer", ["bk", "attention"])
def test_every_mixer_trains(text: Path, mixer: str) -> None:
    events = play(short_config(text, mixer), None, stop_at=40)
    evaluations = of(EvalDone, events)
    assert evaluations[-1].loss_nats < evaluations[0].loss_nats < math.log(256)


def test_two_runs_with_one_seed_say_the_same_and_another_seed_another(text: Path) -> None:
    config = short_config(text, dropout=0.1)
    first, second = (numbers(play(config, None, stop_at=40)) for _ in range(2))
    assert first == second
    other = config.model_copy(update={"seed": 4})
    assert numbers(play(other, None, stop_at=40)) != first


def test_a_finished_trial_that_is_run_again_trains_no_further(
    text: Path, finished: tuple[Path, list[Event]]
) -> None:
    folder, events = finished
    again = play(short_config(text, depth="act", speed_reference_layers=5), folder)
    assert [type(event) for event in again] == [TrialStarted, Measured, TrialEnded]
    assert again[0].step == 40
    same = KNOWN - {"peak_memory_mib", "speedup_measured"}
    ended = [run_of[-1].summary for run_of in (events, again)]  # type: ignore[union-attr]
    assert {name: ended[0][name] for name in same} == {name: ended[1][name] for name in same}


def test_without_a_folder_nothing_is_kept(text: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    events = play(short_config(text), None, stop_at=20)
    assert of(TrialStarted, events)[0].attempt == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("outcome", ["pruned", "interrupted"])
def test_a_stop_gives_the_outcome_its_reason_and_no_measured_speed(
    text: Path, outcome: str
) -> None:
    events = list(run(short_config(text), None, stop=lambda: (outcome, "because")))
    ended = events[-1]
    assert isinstance(ended, TrialEnded)
    assert (ended.outcome, ended.reason, ended.step) == (outcome, "because", 10)
    assert not of(Measured, events)
    assert ended.summary["speedup_measured"] is None
    assert ended.summary["best_val_loss_nats"] is None, "it was never evaluated"
    assert ended.summary["steps"] == 10


def assert_told_as_diverged(events: list[Event], reason: str, step: int | None = None) -> None:
    """The end names step and number; no number of the summary is NaN or infinite."""
    ended = events[-1]
    assert isinstance(ended, TrialEnded)
    assert ended.outcome == "diverged"
    assert re.fullmatch(reason, ended.reason), ended.reason
    if step is not None:
        assert ended.reason.endswith(f"at step {step}")
    assert not of(Measured, events)
    for name, value in ended.summary.items():
        assert value is None or not isinstance(value, float) or math.isfinite(value), name
    assert set(ended.summary) == KNOWN | ELSEWHERE
    list(rows(ended))


BROKEN = r"(loss|gradient norm) is (nan|inf) at step \d+"


@pytest.mark.parametrize("mixer", ["bk", "attention", "linear_recurrence", "mamba"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_huge_learning_rate_ends_as_diverged(text: Path, mixer: str, precision: str) -> None:
    config = short_config(text, mixer, lr=1e30, precision=precision)
    assert_told_as_diverged(play(config, None), BROKEN)


def broken_at_10(text: Path, folder: Path, weight: str, row: Any = ...) -> TrialConfig:
    """Train ten steps, then put a NaN into a weight of the checkpoint."""
    config = short_config(text)
    play(config, folder, stop_at=10)
    path = folder / "checkpoints" / checkpoint.NAME
    state = torch.load(path, weights_only=True)
    state["model"][weight][row] = math.nan
    torch.save(state, path)
    return config


def test_a_nan_weight_ends_as_diverged_at_the_very_next_step(text: Path, tmp_path: Path) -> None:
    config = broken_at_10(text, tmp_path, "norm.weight")
    before = (tmp_path / "checkpoints" / checkpoint.NAME).read_bytes()
    events = play(config, tmp_path)
    assert_told_as_diverged(events, BROKEN, step=11)
    assert len(of(StepsDone, events)) == 1, "it ends with the window"
    after = (tmp_path / "checkpoints" / checkpoint.NAME).read_bytes()
    assert after == before, "a broken state is never saved"


def test_a_validation_loss_that_is_not_finite_ends_as_diverged(tmp_path: Path) -> None:
    """The text has a letter that only the later, unseen part knows; its embedding is NaN."""
    path = write_text(tmp_path / "text.txt", seed=0)
    path.write_text(path.read_text() + "zz " * 1100)  # the last 7%; training ends at 90%
    config = broken_at_10(path, tmp_path / "trial", "embedding.weight", ord("z"))
    events = play(config, tmp_path / "trial")
    assert_told_as_diverged(events, r"validation loss is nan at step 20")
    assert events[-1].summary["best_val_loss_nats"] is None  # type: ignore[union-attr]


def test_the_peak_is_that_of_training_and_not_of_the_measurement(text: Path) -> None:
    """Counting attention's products takes N x N scores, which training never holds."""
    events = play(
        short_config(
            text, "attention", n_seq=1024, **{"train.steps": 2, "eval_every": 2, "eval_windows": 2}
        ),
        None,
    )
    last = of(MemoryPeak, events)[-1].peak_mib
    assert last <= of(TrialEnded, events)[0].summary["peak_memory_mib"] < last + 10


def test_warming_up_leaves_no_trace(text: Path) -> None:
    config = short_config(text, "bk", dropout=0.3, n_experts=2, accumulation=2)
    trial = compose(config, prepare(config.data, 16), None)
    before = {name: value.clone() for name, value in trial.model.state_dict().items()}
    place, drawn = trial.batches.state(), torch.get_rng_state()
    warm_up(trial)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert trial.batches.state() == place
    assert trial.model.training
    assert all(parameter.grad is None for parameter in trial.model.parameters())
    assert all(torch.equal(v, before[name]) for name, v in trial.model.state_dict().items())


def test_a_checkpoint_is_scored_again_on_every_window_of_a_split(
    text: Path, tmp_path: Path
) -> None:
    config = short_config(text, depth="act", eval_windows=10_000)
    events = play(config, tmp_path, stop_at=40)
    write_json(tmp_path / "config.json", {"config": of(TrialStarted, events)[0].config})
    step, score = evaluate_checkpoint(tmp_path, "valid")
    assert step == 40
    last = of(EvalDone, events)[-1]
    assert score.loss_nats == pytest.approx(last.loss_nats, rel=1e-6)
    assert score.metrics == pytest.approx(last.metrics, rel=1e-6)
    assert evaluate_checkpoint(tmp_path, "valid") == (step, score)
    assert evaluate_checkpoint(tmp_path, "test")[1].loss_nats != score.loss_nats


def test_what_cannot_be_scored_is_one_clear_error(text: Path, tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match=r"holds no trial: config\.json is missing"):
        evaluate_checkpoint(tmp_path, "valid")
    write_json(tmp_path / "config.json", {"config": flatten(short_config(text))})
    with pytest.raises(ResumeError, match=r"no checkpoint yet: last\.pt is missing"):
        evaluate_checkpoint(tmp_path, "valid")
    play(short_config(text), tmp_path, stop_at=10)
    with pytest.raises(DataError, match="no future split"):
        evaluate_checkpoint(tmp_path, "future")


def test_a_text_that_is_too_short_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("too short")
    with pytest.raises(DataError, match="too little text"):
        play(short_config(path), None)
    with pytest.raises(DataError, match="no corpus"):
        play(short_config(tmp_path / "missing.txt"), None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"device": "cuda"}, "train.device=cuda, but torch sees no GPU here: use auto or cpu"),
        ({"precision": "bf16"}, "train.precision=bf16 needs a GPU: use float32 on a CPU"),
    ],
)
def test_what_needs_a_gpu_says_so(text: Path, knobs: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        play(short_config(text, **knobs), None)


def test_an_own_model_is_trained_and_its_layers_are_not_made_up(text: Path) -> None:
    knobs = {name: value for name, value in SHORT.items() if name != "n_layers"}
    config = build(
        {**knobs, "corpus": str(text), "n_seq": 16, "model": f"{__name__}:build_own", "arm": "own"}
    )
    events = play(config, None)
    ended = events[-1]
    assert isinstance(ended, TrialEnded)
    assert ended.outcome == "ok"
    assert ended.summary["avg_layers_executed"] is None
    assert ended.summary["speedup_estimate"] is None
    assert ended.summary["speedup_measured"] is None
    assert of(Measured, events)[0].metrics["speed/eval_microseconds_per_token"] > 0


def build_own(config: TrialConfig, vocab_size: int) -> torch.nn.Module:
    class Bigrams(torch.nn.Module):
        causal = True

        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(vocab_size, vocab_size)

        def forward(self, tokens: torch.Tensor) -> Prediction:
            return Prediction(self.table(tokens))

    return Bigrams()
