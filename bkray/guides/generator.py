"""The guides' configuration of the sequence generator: their names to those of bkray's config."""

import difflib
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

from bkray.data.augmentation import Augmentation
from bkray.errors import ConfigError
from bkray.guides.settings import read_settings as read_settings
from bkray.guides.settings import section_of
from bkray.ops.generator_sizes import GeneratorShape, require_room

NAMES = {
    "generator_training_sequence_length": "generator.training_sequence_length",
    "generator_output_sequence_length": "generator.output_sequence_length",
    "generator_training_epochs": "train.steps",
    "pretrained_generator_path": "generator.pretrained",
    "synthetic_samples_per_class": "generator.synthetic_per_class",
    "generator_hidden_dim": "generator.hidden_dim",
    "generator_latent_dim": "generator.latent_dim",
    "use_learned_upsampling": "generator.upsampling",
    "use_conditioned_vae": "generator.conditioned",
    "generator_augmentation": "generator.augmentation",
    "generator_type": "generator.network",
    "generator_training_mode": "bkray train, or samples of a pretrained generator",
    "generator_only_mode": "always so: there are no adapters beside the generator",
}
"""Every name of the guides, and the config path or what else it is here."""

DEPRECATED = "generator_target_sequence_length"
TRAINING, OUTPUT = "generator_training_sequence_length", "generator_output_sequence_length"
DEFAULT_TRAINING_LENGTH = 32
LOSSY_LENGTH = 4
"""The guides' old default. At it and below most is lost of white and of 1/f noise; of steeper
spectra, whose power is slow, more than half is kept (docs/log.md)."""

AUGMENTATIONS = get_args(Augmentation)
NETWORKS = {"vae": "flat", "bk_vae": "bk"}
"""``generator_type`` to ``generator.network``."""


class Rows(NamedTuple):
    """What the settings are held against: the rows at hand."""

    n_frames: int
    n_channels: int
    n_train: int
    n_classes: int


class Guided(NamedTuple):
    """What a guide's settings ask for."""

    overrides: dict[str, Any]
    """Config paths to values, as ``bkray train`` takes them."""
    trains: bool
    """False where samples of ``pretrained_generator_path`` are all that is wanted."""


def generator_overrides(
    settings: Mapping[str, Any],
    rows: Rows,
    *,
    batch_size: int,
    memory_bytes: int | None = None,
) -> Guided:
    """Return the guides' settings as overrides of bkray's config; ``None`` is as if left out.

    An epoch is as many steps as it takes to read ``rows.n_train`` rows.

    Args:
        settings: names of ``NAMES``, also under ``feda2v_config``.
        memory_bytes: what there is to train in; by default nothing is refused for want of it.

    Warns:
        The deprecated name, and a training length of 4 or less.

    Raises:
        ConfigError: an unknown name, a value that is not allowed or that does nothing, a training
            length above that of the rows, or a set-up too large for the memory.
    """
    given = _migrated(_given(settings))
    trains = _trains(given)
    length = _whole(given, TRAINING, DEFAULT_TRAINING_LENGTH, least=2)
    if length > rows.n_frames:
        raise ConfigError(
            f"{TRAINING}={length} is above the length of the rows, {rows.n_frames} frames: "
            "lower it"
        )
    if length <= LOSSY_LENGTH:
        warnings.warn(
            f"{TRAINING}={length} is a major loss of information: {rows.n_frames} frames are "
            f"averaged down to {length}; {DEFAULT_TRAINING_LENGTH} is the default",
            stacklevel=2,
        )
    overrides = {
        "generator.training_sequence_length": length,
        # The guides' null is the training length, bkray's is that of the rows.
        "generator.output_sequence_length": _output_length(given, length),
        **_switches(given),
        **_numbers(given),
    }
    if trains:
        n_epochs = _whole(given, "generator_training_epochs", 1)
        overrides["train.steps"] = n_epochs * -(-rows.n_train // batch_size)
        if memory_bytes is not None:
            _require_room(overrides, rows, batch_size, memory_bytes)
    return Guided(overrides, trains)


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the names that have a value."""
    settings = section_of(settings)
    for name in settings:
        if name not in NAMES and name != DEPRECATED:
            near = difflib.get_close_matches(name, NAMES, n=3) or list(NAMES)
            raise ConfigError(f"unknown name {name!r}: did you mean {', '.join(near)}?")
    return {name: value for name, value in settings.items() if value is not None}


def _migrated(given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with the deprecated name as the training length that it was."""
    if DEPRECATED not in given:
        return given
    if TRAINING in given:
        raise ConfigError(
            f"{DEPRECATED}={given[DEPRECATED]} is the old name of {TRAINING}={given[TRAINING]}: "
            f"drop {DEPRECATED}"
        )
    warnings.warn(
        f"{DEPRECATED} is deprecated: write {TRAINING}, and {OUTPUT} for the length of samples",
        DeprecationWarning,
        stacklevel=3,
    )
    return {TRAINING if name == DEPRECATED else name: value for name, value in given.items()}


def _trains(given: Mapping[str, Any]) -> bool:
    """Return whether a generator is trained, by default where none is given."""
    pretrained = given.get("pretrained_generator_path")
    trains = _truth(given, "generator_training_mode", pretrained is None)
    if not _truth(given, "generator_only_mode", True):
        raise ConfigError(
            "generator_only_mode=false asks for adapters beside the generator, which there are "
            "not: leave it out, or set it to true"
        )
    if trains:
        return True
    if pretrained is None:
        raise ConfigError(
            "generator_training_mode=false needs a pretrained_generator_path: nothing is trained "
            "and nothing is loaded"
        )
    for name in ("generator_training_epochs", "generator_augmentation"):
        if name in given:
            raise ConfigError(
                f"{name} does nothing with generator_training_mode=false: leave it out"
            )
    return False


def _output_length(given: Mapping[str, Any], training: int) -> int:
    length = _whole(given, OUTPUT, training)
    if length < training:
        raise ConfigError(f"{OUTPUT} must be at least {TRAINING}={training}, got {length}")
    if length == training and _truth(given, "use_learned_upsampling", False):
        raise ConfigError(
            f"use_learned_upsampling does nothing with {OUTPUT}={length}, which is the training "
            "length: give a longer one, or leave it out"
        )
    return length


def _switches(given: Mapping[str, Any]) -> dict[str, Any]:
    network = given.get("generator_type", "vae")
    if network not in NETWORKS:
        raise ConfigError(f"generator_type must be one of {', '.join(NETWORKS)}, got {network!r}")
    conditioned = _truth(given, "use_conditioned_vae", True)
    if not conditioned and "synthetic_samples_per_class" in given:
        raise ConfigError(
            "synthetic_samples_per_class does nothing with use_conditioned_vae=false, which knows "
            "no classes: set it to true, or leave one of them out"
        )
    learned = _truth(given, "use_learned_upsampling", False)
    augmentation = given.get("generator_augmentation", False)
    if isinstance(augmentation, bool):
        augmentation = "all" if augmentation else "off"
    if augmentation not in AUGMENTATIONS:
        raise ConfigError(
            "generator_augmentation must be true, false or one of "
            f"{', '.join(AUGMENTATIONS)}, got {augmentation!r}"
        )
    return {
        "generator.network": NETWORKS[network],
        "generator.conditioned": conditioned,
        "generator.upsampling": "learned" if learned else "linear",
        "generator.augmentation": augmentation,
    }


def _numbers(given: Mapping[str, Any]) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        NAMES[name]: _whole(given, name, 0)
        for name in (
            "generator_hidden_dim",
            "generator_latent_dim",
            "synthetic_samples_per_class",
        )
        if name in given
    }
    if "pretrained_generator_path" in given:
        numbers["generator.pretrained"] = str(given["pretrained_generator_path"])
    return numbers


def _require_room(
    overrides: Mapping[str, Any], rows: Rows, batch_size: int, room_bytes: int
) -> None:
    length = overrides["generator.training_sequence_length"]
    shape = GeneratorShape(
        input_dim=rows.n_channels,
        hidden_dim=overrides.get("generator.hidden_dim", 1024),
        latent_dim=overrides.get("generator.latent_dim", 256),
        training_sequence_length=length,
        learned_upsampling=overrides["generator.upsampling"] == "learned",
        n_classes=rows.n_classes if overrides["generator.conditioned"] else None,
        mixer=overrides["generator.network"],
    )
    # Rows are pooled once and for all where no step needs them whole.
    whole = shape.learned_upsampling or overrides["generator.augmentation"] != "off"
    n_frames = rows.n_frames if whole else length
    require_room(shape, batch_size=batch_size, n_frames=n_frames, available_bytes=room_bytes)


def _whole(given: Mapping[str, Any], name: str, default: int, least: int = 1) -> int:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or (name in given and value < least):
        raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return value


def _truth(given: Mapping[str, Any], name: str, default: bool) -> bool:
    value = given.get(name, default)
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, got {value!r}")
    return value
