"""Overrides: flat mappings from config paths to values, the same words everywhere.

Command line, sweep files, search spaces, Parquet and MLflow all speak of ``model.act_lambda``. A
last part that is unique may stand alone: ``act_lambda``.
"""

import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from bkray.config import MADE, SPECTRA, ModelConfig, TrialConfig
from bkray.errors import ConfigError
from bkray.knobs import acting_knobs, why_not_in_chunks

Overrides = Mapping[str, Any]

DENSE: Overrides = {
    "model.depth": "dense",
    "model.length": "fixed",
    "model.multiscale": False,
    "model.mixer_scale": 1,
    "model.sparsity": "off",
}
"""Every site through every layer: what adaptive models are compared with."""

_OPTIONS = "model.options."


def build(overrides: Overrides) -> TrialConfig:
    """Return the resolved config.

    Raises:
        ConfigError: an unknown path (the nearest ones are named), a value that is not allowed, or
            a knob that does nothing in the chosen model.
    """
    nested: dict[str, Any] = {}
    for name, value in overrides.items():
        *sections, last = full_path(name).split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{'.'.join(sections)}={place} has no parts: drop it or {name}")
        place[last] = dict(value) if isinstance(value, Mapping) else value
    try:
        return TrialConfig.model_validate(nested)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def flatten(config: TrialConfig) -> dict[str, Any]:
    """Return path to value for every knob that acts; ``build`` of it gives the config back."""
    return dict(_leaves(config.acting(), ""))


def row_length(flat: Overrides) -> int | None:
    """Return the positions of a row of a batch, tokens or frames, of what ``flatten`` returned."""
    length = flat.get("generator.training_sequence_length", flat.get("model.n_seq"))
    return None if length is None else int(length)


def trial_id(config: TrialConfig, data_hash: str, version: str) -> str:
    """Return 12 hex digits: equal trials on equal data by an equal package have an equal id."""
    words = json.dumps([flatten(config), data_hash, version], sort_keys=True)
    return hashlib.sha256(words.encode()).hexdigest()[:12]


def configuration_id(flat: Overrides) -> str:
    """Return 12 hex digits that trials share when they differ in their seed alone.

    ``flat`` is what ``flatten`` returned; it may have been to JSON and back.
    """
    words = json.dumps({name: flat[name] for name in flat if name != "seed"}, sort_keys=True)
    return hashlib.sha256(words.encode()).hexdigest()[:12]


def parse(words: Iterable[str]) -> dict[str, Any]:
    """Return overrides from ``path=value`` words; a value that is no JSON is text."""
    overrides: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"an override is written path=value, got {word!r}")
        overrides[full_path(name.strip())] = _value(text.strip())
    return overrides


def full_path(name: str) -> str:
    """Return the config path that ``name`` means: itself, or the one path that ends with it.

    Raises:
        ConfigError: no path or several paths are meant.
    """
    if name == "model":  # model=package.module:build
        return "model.build"
    if name.startswith("options."):
        return f"model.{name}"
    known = config_paths()
    if name in known or name.startswith(_OPTIONS):
        return name
    ends = [path for path in known if path.endswith("." + name)]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise ConfigError(f"config path {name!r} could mean any of: {', '.join(ends)}")
    lasts = {path.rpartition(".")[2]: path for path in known}
    near = difflib.get_close_matches(name, known, n=3) or [
        lasts[last] for last in difflib.get_close_matches(name.rpartition(".")[2], lasts, n=3)
    ]
    advice = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known)}"
    raise ConfigError(f"unknown config path {name!r}: {advice}")


def acting(overrides: Overrides) -> dict[str, Any]:
    """Return the overrides without those knobs that do nothing in their model.

    A rival with another model takes a sweep's overrides this way: ``model.act_lambda`` is left out
    for a dense one, and ``train.chunk`` where rows are no longer than that. Names are full config
    paths.
    """
    model = {name.removeprefix("model."): value for name, value in overrides.items()}
    acts = acting_knobs(model)
    idle = {f"model.{name}" for name in ModelConfig.model_fields if name not in acts} - {
        "model.n_seq"
    }
    if acts.get("mixer") != "bk":
        idle |= {"train.monitor", "train.precision_upgrade"}
    chunk = overrides.get("train.chunk")
    if isinstance(chunk, int) and chunk >= _n_seq(overrides):
        idle.add("train.chunk")
    return {name: value for name, value in overrides.items() if name not in idle}


def giving_way(own: Overrides, chosen: Overrides) -> dict[str, Any]:
    """Return a sweep's own overrides with those that were chosen laid over them.

    Of its own, ``ladder.lr_rule`` gives way to a climb, ``train.chunk`` to a model that takes
    whole rows alone, and knobs of made embeddings to those of a file; what was chosen stays, to be
    refused by name. Names are full config paths.
    """
    both = {**own, **chosen}
    idle = {"ladder.lr_rule"} if both.get("ladder.mode") == "carry" else set()
    if both.get("data.embeddings", SPECTRA) != SPECTRA:
        idle |= {f"data.{name}" for name in MADE}
    if both.get("generator.conditioned") is False:
        idle.add("generator.synthetic_per_class")
    if both.get("generator.kl_weight") == 0:
        idle.add("generator.kl_warmup_steps")
    try:
        model = build({k: v for k, v in acting(both).items() if k.startswith("model.")}).model
    except ConfigError:  # told when the whole is built
        model = None
    if model is not None and why_not_in_chunks(model, 1) is not None:
        idle.add("train.chunk")
    return {name: value for name, value in both.items() if name in chosen or name not in idle}


def _n_seq(overrides: Overrides) -> int:
    """Return the length of rows, in tokens, so far as the overrides allow one."""
    paths = ("model.n_seq", "ladder.lengths")
    try:
        return build({path: overrides[path] for path in paths if path in overrides}).model.n_seq
    except ConfigError:  # told when the whole is built
        return TrialConfig().model.n_seq


def config_paths() -> list[str]:
    """Return every config path."""
    return list(_fields(TrialConfig, ""))


def _fields(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _fields(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)


def _explain(error: ValidationError) -> str:
    """Return one line for the first fault: field, allowed range, value."""
    fault = error.errors()[0]
    if fault["type"] == "value_error":
        return str(fault["ctx"]["error"])
    path = ".".join(str(part) for part in fault["loc"])
    said = fault["msg"][0].lower() + fault["msg"][1:]
    return f"{path}: {said}{_allowed(path)}, got {fault['input']!r}"


def _allowed(path: str) -> str:
    """Return the whole range of a numeric field, as `` (allowed: 0 < act_threshold <= 1)``."""
    section: Any = TrialConfig
    *sections, last = path.split(".")
    for name in sections:
        section = section.model_fields[name].annotation
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return ""
    if last not in section.model_fields:
        return ""
    bounds = {type(m).__name__.lower(): m for m in section.model_fields[last].metadata}
    low = (
        f"{bounds['gt'].gt} < "
        if "gt" in bounds
        else f"{bounds['ge'].ge} <= "
        if "ge" in bounds
        else ""
    )
    high = (
        f" < {bounds['lt'].lt}"
        if "lt" in bounds
        else f" <= {bounds['le'].le}"
        if "le" in bounds
        else ""
    )
    return f" (allowed: {low}{last}{high})" if low or high else ""
