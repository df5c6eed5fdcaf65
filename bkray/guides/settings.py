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
    if isinstance(said, Mapping) and isinstance(said.get(SECTION), Mapping):
        said = said[SECTION]
    if not isinstance(said, Mapping):
        raise ConfigError(f"{path} must hold names and values, also under {SECTION}")
    return dict(said)
