"""Sweeps for adaptive-compute and long-context sequence models."""

from bkray.config import TrialConfig as TrialConfig
from bkray.errors import BkrayError as BkrayError
from bkray.errors import ConfigError as ConfigError
from bkray.errors import DataError as DataError
from bkray.errors import ResumeError as ResumeError
from bkray.errors import TrackingError as TrackingError
from bkray.overrides import build as build
from bkray.sweep import Arm as Arm
from bkray.sweep import Objective as Objective
from bkray.sweep import Preset as Preset
from bkray.sweep import Sweep as Sweep

__version__ = "0.6.0"
