"""Finding a sweep by name or file."""

import sys
from pathlib import Path

import pytest

from bkray.errors import ConfigError
from bkray.sweep import Sweep
from sweeps.act import SWEEP
from sweeps.load import load, names

OWN = """
from bkray.sweep import Objective, Preset, Sweep
from own_space_beside import suggest

SWEEP = Sweep(
    name="own",
    space=suggest,
    objectives=(Objective(column="best_val_loss_nats", direction="minimize"),),
    presets={"smoke": Preset(trials=2)},
)
"""


def test_finds_a_shipped_sweep_by_name() -> None:
    assert load("act") is SWEEP
    assert "act" in names()
    assert "load" not in names()


def test_finds_a_users_own_sweep_and_what_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "own_sweep", sys)  # is put back afterwards
    (tmp_path / "own_sweep.py").write_text(OWN)
    (tmp_path / "own_space_beside.py").write_text("def suggest(trial): return {}\n")
    sweep = load(str(tmp_path / "own_sweep.py"))
    assert isinstance(sweep, Sweep)
    assert sweep.name == "own"
    assert str(tmp_path) in sys.path


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown sweep 'acct'.*act"):
        load("acct")


def test_a_file_that_is_not_there_is_said() -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load("nowhere/my_sweep.py")


@pytest.mark.parametrize("text", ["", "SWEEP = 3\n"])
def test_a_file_without_a_sweep_is_told_what_it_must_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "holds_none", sys)
    (tmp_path / "holds_none.py").write_text(text)
    with pytest.raises(ConfigError, match="SWEEP = "):
        load(str(tmp_path / "holds_none.py"))
