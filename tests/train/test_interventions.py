"""A spike is recorded, undone, or gone back from; counted, bounded, and exact on resume."""

from pathlib import Path
from typing import Any

import pytest
import torch
from trials import of, play, short_config, weights

from bkray.events import Event, Rewound, Spiked, StepsDone, TrialEnded, TrialStarted

WILD: dict[str, Any] = {"lr": 3.0, "warmup_steps": 0, "steps": 20, "eval_every": 4}


def played(text: Path, folder: Path | None = None, **knobs: Any) -> list[Event]:
    return play(short_config(text, **{**WILD, **knobs}), folder)


def ended(events: list[Event]) -> dict[str, Any]:
    return dict(of(TrialEnded, events)[0].summary)


def test_spikes_are_recorded_and_nothing_else(text: Path) -> None:
    events = played(text)
    assert of(Spiked, events)
    assert not of(Rewound, events)
    assert not any(window.masked for window in of(StepsDone, events))
    assert ended(events)["interventions"] == 0


def test_skip_step_undoes_each_spiking_step_and_counts(text: Path) -> None:
    events = played(text, on_spike="skip_step")
    doubled = {spike.step for spike in of(Spiked, events) if spike.rule == "doubled"}
    skipped = {step for window in of(StepsDone, events) for step in window.masked}
    assert skipped == doubled != set()
    assert ended(events)["interventions"] == len(skipped)
    assert ended(events)["spike_count"] == len(doubled)


@pytest.mark.parametrize("policy", ["skip_step", "rewind"])
def test_interventions_are_bounded(text: Path, policy: str) -> None:
    events = played(text, on_spike=policy, max_interventions=1)
    assert ended(events)["interventions"] == 1
    assert ended(events)["spike_count"] > 1


def test_rewind_goes_back_to_the_windows_start_and_on_with_other_data(text: Path) -> None:
    events = played(text, on_spike="rewind", max_interventions=2)
    assert len(of(Rewound, events)) == 2
    at = events.index(of(Rewound, events)[0])
    back = of(Rewound, events)[0]
    (before, *_) = [event for event in reversed(events[:at]) if isinstance(event, StepsDone)]
    after = next(event for event in events[at:] if isinstance(event, StepsDone))
    assert back.step == before.step == after.step
    assert back.to_step == before.step - len(before.loss_nats)
    assert before.tokens == after.tokens
    assert before.loss_nats != after.loss_nats
    assert ended(events)["steps"] == 20


@pytest.mark.parametrize("policy", ["skip_step", "rewind"])
@pytest.mark.parametrize("kill_at", [8, 16])
def test_a_killed_trial_intervenes_as_an_undisturbed_one(
    text: Path, tmp_path: Path, policy: str, kill_at: int
) -> None:
    config = short_config(text, **WILD, checkpoint_every=4, dropout=0.1, on_spike=policy)
    undisturbed = play(config, tmp_path / "undisturbed")
    play(config, tmp_path / "killed", kill_at=kill_at)
    resumed = play(config, tmp_path / "killed")
    started = of(TrialStarted, resumed)[0]
    assert started.step > 0
    last = of(StepsDone, undisturbed)[-1]
    assert of(StepsDone, resumed)[-1].loss_nats == last.loss_nats
    for name in ("interventions", "spike_count", "final_val_loss_nats"):
        assert ended(resumed)[name] == ended(undisturbed)[name]
    expected = weights(tmp_path / "undisturbed", started.trial_id)
    for name, weight in weights(tmp_path / "killed", started.trial_id).items():
        assert torch.equal(weight, expected[name]), name
