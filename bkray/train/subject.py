"""What a frontier is taken of: a trial's model, and the windows that training evaluates on."""

from bkray.data.of_trial import UNSCORED
from bkray.errors import ConfigError
from bkray.nn.length import LearnedLength
from bkray.nn.lm import LanguageModel
from bkray.train.recorded import Windows
from bkray.train.run import Run


def model_of(run: Run) -> LanguageModel | LearnedLength:
    """Return the trial's model.

    Raises:
        ConfigError: it is the user's own, which has none of these knobs.
    """
    if isinstance(run.model, LanguageModel | LearnedLength):
        return run.model
    raise ConfigError(
        f"model.build={run.config.model.build} has no knob to sweep: a frontier needs a "
        "bkray.nn.lm.LanguageModel"
    )


def within(model: LanguageModel | LearnedLength) -> LanguageModel:
    """Return the language model that a length may have been put around."""
    return model.model if isinstance(model, LearnedLength) else model


def windows_of(run: Run) -> Windows:
    """Return what training evaluates on, but for rows that are filled up."""
    inputs_WN, targets_WN = run.validation
    whole_W = (targets_WN != UNSCORED).all(dim=1)
    return Windows(
        inputs_WN[whole_W], targets_WN[whole_W], run.config.train.batch_size, run.autocast
    )
