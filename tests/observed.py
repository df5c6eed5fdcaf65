"""What can be seen of a short trial: a function of its config and a folder for each number.

Each returns something to compare; its size and form are its own affair.
"""

from pathlib import Path
from typing import Any

import torch

from bkray.config import TrialConfig
from bkray.data.shards import prepare
from bkray.errors import ConfigError
from bkray.events import (
    CellDone,
    EvalDone,
    Event,
    Measured,
    StepsDone,
    TrialEnded,
    TrialStarted,
)
from bkray.nn.lm import LanguageModel
from bkray.overrides import flatten
from bkray.train.checkpoint import NAME
from bkray.train.mismatch import cells
from bkray.train.summary import dense_rival, reference_layers, timed_rows
from bkray.train.window import train_window
from bkray.trial import compose, prepared, run
from sweeps.ladder import arms


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


def cells_of(config: TrialConfig) -> list[CellDone]:
    """The cells of a model that has learnt nothing yet."""
    shards = prepare(config.data, config.model.n_seq)
    return list(cells(compose(config, shards, None), shards))


def measured_cells(config: TrialConfig, folder: Path) -> Any:
    return [(one.n_eval, one.strategy) for one in cells_of(config)]


def late_losses_of_cells(config: TrialConfig, folder: Path) -> Any:
    return [round(one.metrics["late_loss_nats"], 9) for one in cells_of(config)]


def probed_items(config: TrialConfig, folder: Path) -> Any:
    return [one.metrics["items"] for one in cells_of(config)]


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
    return prepared(config).fingerprint


def threads(config: TrialConfig, folder: Path) -> Any:
    played(config)
    return torch.get_num_threads()


def interventions(config: TrialConfig, folder: Path) -> Any:
    return of(TrialEnded, config)[0].summary["interventions"]


def rival_depth(config: TrialConfig, folder: Path) -> Any:
    return reference_layers(config)


def rows_timed(config: TrialConfig, folder: Path) -> Any:
    shards = prepare(config.data, config.model.n_seq)
    return len(timed_rows(compose(config, shards, None)))


def rival_params(config: TrialConfig, folder: Path) -> Any:
    return sum(p.numel() for p in dense_rival(config, 256).parameters())


def rival_mixer(config: TrialConfig, folder: Path) -> Any:
    rival = dense_rival(config, 256)
    assert isinstance(rival, LanguageModel)
    return [type(block.mixer).__name__ for block in rival.blocks]


def lengths_timed(config: TrialConfig, folder: Path) -> Any:
    (measured,) = [event for event in run(config, None) if isinstance(event, Measured)]
    return sorted(name for name in measured.metrics if "/seq" in name)
