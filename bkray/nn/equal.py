"""Models of other mixers with as many parameters: the feed-forward width makes up for the rest."""

from typing import Any

from bkray.config import ModelConfig
from bkray.errors import ConfigError
from bkray.knobs import acting_knobs
from bkray.nn.build import language_model
from bkray.overrides import Overrides, acting, build


def n_params(overrides: Overrides) -> int:
    """Return the parameters of the byte model of these overrides."""
    model = language_model(build(acting(overrides)).model, vocab_size=256)
    return sum(p.numel() for p in model.parameters())


def at_equal_parameters(overrides: Overrides, target: int) -> dict[str, Any]:
    """Return the overrides with the feed-forward width that comes nearest to ``target``.

    Raises:
        ConfigError: the model has more parameters at any width.
    """
    one, two = (n_params({**overrides, "model.d_hidden": width}) for width in (1, 2))
    width = 1 + round((target - one) / (two - one))
    if width < 1:
        raise ConfigError(
            f"no model.d_hidden gives {target:,} parameters: a width of 1 has {one:,} already; "
            "raise model.d_hidden of the others"
        )
    return {**overrides, "model.d_hidden": width}


def with_mixer(model: ModelConfig, mixer: str) -> dict[str, Any]:
    """Return overrides of the model with another mixer and as many parameters.

    Knobs that mean something else to the other mixer, such as its heads, are at their defaults.
    """
    own = {name: value for name, value in model.model_dump(exclude_none=True).items()}
    here, there = (acting_knobs({**own, "mixer": name}) for name in (model.mixer, mixer))
    shared = {k: v for k, v in own.items() if k == "n_seq" or (k in there and here[k] == there[k])}
    flat = {f"model.{name}": value for name, value in own.items()}
    if mixer == model.mixer:
        return flat
    other = {f"model.{name}": value for name, value in shared.items()} | {"model.mixer": mixer}
    return at_equal_parameters(other, n_params(flat))
