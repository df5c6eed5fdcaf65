"""A generator's trial: the same loop, events, checkpoints and judge as a language model's."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from generators import tiny_generator, write_generator
from ranks import in_team

from bkray.config import TrialConfig
from bkray.data.of_generator import Standardised, sequences
from bkray.errors import ConfigError, DataError
from bkray.events import EvalDone, Event, Measured, StepsDone, TrialEnded, TrialStarted, rows
from bkray.nn.vae import VAEGenerator
from bkray.train import checkpoint
from bkray.train.findings import FOLDER, read_diagnosis
from bkray.train.row_losses import evaluated
from bkray.train.team import Team
from bkray.trial import compose, identify, open_checkpoint, prepared, run


def played(config: TrialConfig, folder: Path | None = None) -> list[Event]:
    return list(run(config, folder))


def first_events(config: TrialConfig) -> list[Event]:
    return list(itertools.islice(run(config, None), 2))


def of(kind: type, events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


@pytest.fixture(scope="module")
def events() -> list[Event]:
    return played(tiny_generator())


def test_a_trial_says_what_every_trial_says(events: list[Event]) -> None:
    (started,), (ended,) = of(TrialStarted, events), of(TrialEnded, events)
    assert (ended.outcome, ended.summary["steps"]) == ("ok", 8)
    assert ended.summary["tokens"] == 8 * 8 * 8, "frames at the training length"
    assert ended.summary["seq_len"] == 8
    assert ended.summary["n_params"] == started.n_params > 0
    assert [event.step for event in of(EvalDone, events)] == [4, 8]
    assert set(of(StepsDone, events)[0].metrics) == {"train/kl_nats", "train/reconstruction_nats"}


def test_the_numbers_of_the_table_are_those_of_the_events(events: list[Event]) -> None:
    (measured,), (ended,) = of(Measured, events), of(TrialEnded, events)
    last = of(EvalDone, events)[-1].metrics
    assert ended.summary["explained_variance"] == last["generator/explained_variance"]
    assert ended.summary["kl_nats"] == last["generator/kl_nats"] > 0
    accuracy = measured.metrics["generator/downstream_accuracy"]
    assert ended.summary["downstream_accuracy"] == accuracy
    assert 0 <= accuracy <= 1
    for name in ("training_peak_mib", "generation_peak_mib", "generation_seconds_per_row"):
        assert measured.metrics[f"generator/{name}"] > 0
    assert measured.metrics["generator/training_estimate_mib"] > 0


def test_no_decoder_can_be_better_than_the_bound_of_pooling(events: list[Event]) -> None:
    (measured,) = of(Measured, events)
    known = {name.partition("/")[2]: value for name, value in measured.metrics.items()}
    assert 0 < known["pooled_explained_variance"] < known["pooling_bound"] < 1


def test_what_a_trained_one_explains_is_below_the_bound_of_pooling() -> None:
    knobs = {"hidden_dim": 64, "latent_dim": 16, "kl_weight": 0.01, "lr": 5e-3}
    events = played(tiny_generator(**{"train.steps": 200, "n_per_class": 60}, **knobs))
    (measured,), (ended,) = of(Measured, events), of(TrialEnded, events)
    bound = measured.metrics["generator/pooling_bound"]
    assert 0.3 * bound < ended.summary["explained_variance"] < bound


def test_explained_variance_is_one_less_error_over_variance() -> None:
    config = tiny_generator()
    trial = compose(config, prepared(config), None)
    held = Standardised(sequences(config.data)).split("valid")
    trial.model.eval()
    with torch.no_grad():
        said = trial.model(held.x_NLD, held.label_N)
    expected = 1 - (said.full_BLD - held.x_NLD).square().sum() / held.x_NLD.square().sum()
    found = evaluated(config, trial.model, held, trial.autocast).metrics
    assert found["generator/explained_variance"] == pytest.approx(float(expected), abs=1e-6)
    assert trial.task.score(trial).metrics == found


def test_a_trial_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    config = tiny_generator(augmentation="all", upsampling="learned")
    whole = of(StepsDone, played(config))
    asked = iter([None, ("interrupted", "by hand")])
    first = list(run(config, tmp_path, stop=lambda: next(asked, None)))
    assert of(TrialEnded, first)[0].outcome == "interrupted"
    rest = of(StepsDone, played(config, tmp_path))
    losses = [loss for event in of(StepsDone, first) + rest for loss in event.loss_nats]
    assert losses == [loss for event in whole for loss in event.loss_nats]


def test_accumulated_parts_train_on_the_same_loss() -> None:
    each = [first_events(tiny_generator(accumulation=n)) for n in (1, 2)]
    losses = [of(StepsDone, events)[0].loss_nats[0] for events in each]
    assert losses[0] == pytest.approx(losses[1], rel=0.05), "but for the posterior's draws"


def test_a_collapsed_posterior_is_an_end_of_its_own(tmp_path: Path) -> None:
    config = tiny_generator(kl_weight=50.0, steps=200, lr=0.01, eval_every=200)
    events = played(config, tmp_path)
    (ended,) = of(TrialEnded, events)
    assert ended.outcome == "diverged"
    assert ended.step < 200
    assert "posterior collapse" in ended.reason and "nats a row" in ended.reason
    assert of(StepsDone, events)[-1].metrics["train/kl_nats"] < 0.05


@pytest.fixture(scope="module")
def collapsed(tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    return played(tiny_generator(kl_weight=50.0, steps=200, lr=0.01, eval_every=200))


def test_a_collapsed_trial_is_scored_where_it_ended(collapsed: list[Event]) -> None:
    (ended,) = of(TrialEnded, collapsed)
    assert ended.outcome == "diverged"
    assert [event.step for event in of(EvalDone, collapsed)] == [ended.step]
    assert ended.summary["kl_nats"] < 0.05


def test_a_collapse_at_the_last_step_ends_nothing_early(collapsed: list[Event]) -> None:
    steps = of(TrialEnded, collapsed)[0].step
    events = played(tiny_generator(kl_weight=50.0, steps=steps, lr=0.01, eval_every=200))
    (ended,) = of(TrialEnded, events)
    assert (ended.outcome, ended.step) == ("ok", steps)
    assert ended.summary["kl_nats"] < 0.05 and ended.summary["downstream_accuracy"] is not None


def test_a_checkpoint_holds_the_prior_that_samples_are_drawn_from(tmp_path: Path) -> None:
    for prior, n_rows in (("fitted", 22), ("standard", 0)):
        events = played(tiny_generator(prior=prior), tmp_path / prior)
        state = checkpoint.read(tmp_path / prior / "checkpoints" / checkpoint.NAME)["model"]
        assert int(state["prior.fitted_rows"]) == n_rows
        (measured,) = of(Measured, events)
        assert measured.metrics["generator/sample_variance_ratio"] > 0
        assert 0 <= measured.metrics["generator/downstream_accuracy_pooled"] <= 1


def test_a_divergence_is_seen_and_explained(tmp_path: Path) -> None:
    config = tiny_generator(lr=3e3, clip_norm=1e9, steps=200, eval_every=200, kl_warmup_steps=0)
    (ended,) = of(TrialEnded, played(config, tmp_path))
    assert ended.outcome == "diverged"
    assert ended.step < 200
    found = read_diagnosis(tmp_path / FOLDER)
    assert found is not None and found.kind != "vanished" and found.step <= ended.step


def test_without_classes_nothing_is_said_downstream() -> None:
    events = played(tiny_generator(conditioned=False, synthetic_per_class=None))
    (ended,), (measured,) = of(TrialEnded, events), of(Measured, events)
    assert ended.outcome == "ok" and ended.summary["downstream_accuracy"] is None
    assert not [name for name in measured.metrics if "downstream" in name]


def test_training_begins_with_the_weights_of_a_pretrained_one(tmp_path: Path) -> None:
    played(tiny_generator(), tmp_path)
    path = tmp_path / "checkpoints" / checkpoint.NAME
    config = tiny_generator(pretrained=str(path), output_sequence_length=32)
    model = compose(config, prepared(config), None).model
    saved = checkpoint.read(path)["model"]
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    assert isinstance(model, VAEGenerator) and model.output_sequence_length == 32
    other = tiny_generator(pretrained=str(path), latent_dim=5)
    with pytest.raises(ConfigError, match=r"pretrained=.* is of a generator with other sizes"):
        compose(other, prepared(other), None)
    gone = tiny_generator(pretrained=str(tmp_path / "gone.pt"))
    with pytest.raises(ConfigError, match=r"pretrained=.*gone.pt is no checkpoint"):
        compose(gone, prepared(gone), None)


def test_a_trial_that_goes_on_needs_its_pretrained_file_no_more(tmp_path: Path) -> None:
    path = write_generator(tmp_path / "p.pt")
    config = tiny_generator(pretrained=str(path))
    asked = iter([("interrupted", "by hand")])
    list(run(config, tmp_path / "t", stop=lambda: next(asked, None)))
    path.unlink()
    assert of(TrialEnded, played(config, tmp_path / "t"))[0].outcome == "ok"


def test_a_standard_prior_is_asked_for_of_a_pretrained_one_too(tmp_path: Path) -> None:
    played(tiny_generator(), tmp_path)
    path = tmp_path / "checkpoints" / checkpoint.NAME
    config = tiny_generator(pretrained=str(path), prior="standard")
    assert int(compose(config, prepared(config), None).model.prior.fitted_rows) == 0


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"training_sequence_length": 65}, r"training_sequence_length must be at most 64"),
        ({"output_sequence_length": 4}, r"output_sequence_length must be at least"),
        (
            {"output_sequence_length": 8, "upsampling": "learned"},
            r"generator.upsampling=learned does nothing with a training length of 8",
        ),
        (
            {"training_sequence_length": 64, "upsampling": "learned"},
            r"generator.upsampling=learned does nothing with a training length of 64",
        ),
        ({"synthetic_per_class": 12}, r"synthetic_per_class=12 is above 11, the training rows"),
    ],
)
def test_lengths_that_the_data_do_not_have_are_refused(knobs: dict[str, Any], said: str) -> None:
    config = tiny_generator(**knobs)
    with pytest.raises(ConfigError, match=said):
        identify(config)


def test_what_would_not_fit_is_refused_with_the_estimate() -> None:
    config = tiny_generator(training_sequence_length=64, hidden_dim=2_000_000_000)
    with pytest.raises(ConfigError, match=r"would take about .* GiB .* are free"):
        identify(config)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    made = dict.fromkeys(("n_frames", "n_channels", "n_classes", "n_per_class"))
    config = tiny_generator(embeddings=str(tmp_path / "gone.npy"), **made)
    with pytest.raises(DataError, match=r"gone.npy"):
        identify(config)


def test_verbs_of_language_models_refuse_a_generators_folder(tmp_path: Path) -> None:
    from bkray.cluster.single import train_alone

    train_alone(tiny_generator(), tmp_path, [])
    with pytest.raises(ConfigError, match="holds a sequence generator"):
        open_checkpoint(tmp_path)


def numbers(events: list[Event]) -> list[Any]:
    """Return all numbers of the steps and evaluations, but those of a clock."""
    told = [row for event in of(StepsDone, events) + of(EvalDone, events) for row in rows(event)]
    return [row for row in told if "seconds" not in row.name]


def _events(team: Team, config: TrialConfig) -> list[Event]:
    return list(run(config, None, team=team))


@pytest.mark.slow
def test_two_processes_are_told_the_same_and_end_alike(tmp_path: Path) -> None:
    config = tiny_generator(batch_size=16, upsampling="learned", **{"train.steps": 12})
    first, second = in_team(2, tmp_path, _events, config)
    assert numbers(first) == numbers(second)
    assert of(TrialEnded, first)[0].outcome == "ok"
    alone = of(EvalDone, played(config))[-1].loss_nats
    assert of(EvalDone, first)[-1].loss_nats == pytest.approx(alone, rel=0.05), "but for the draws"
