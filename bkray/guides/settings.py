"""Files of settings by the guides' names: JSON or YAML, by safe loaders."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bkray.errors import ConfigError

SECTION = "feda2v_config"
"""The names may stand under it, or at the top."""


def read_settings(path: str | Path) -> dict[str, Any]:
    """Return the settings of a JSON or YAML file, those under ``feda2v_config`` or at the top.

    Raises:
        ConfigError: no such file, or no mapping in it.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        said = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is neither JSON nor YAML: {error}") from error
    if isinstance(said, Mapping):
        said = section_of(said)
    if not isinstance(said, Mapping):
        raise ConfigError(f"{path} must hold names and values, also under {SECTION}")
    return dict(said)


def section_of(settings: Mapping[str, Any]) -> Any:
    """Return what stands under ``feda2v_config``, nothing for its null; without it all there is.

    Raises:
        ConfigError: names beside the section, which would not be read.
    """
    if SECTION not in settings:
        return settings
    beside = [str(name) for name in settings if name != SECTION]
    if beside:
        raise ConfigError(
            f"{', '.join(beside)} beside {SECTION} would not be read: move it under {SECTION}, or "
            "leave it out"
        )
    section = settings[SECTION]
    return {} if section is None else section
