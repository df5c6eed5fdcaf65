"""The searcher's file on disk."""

import json
from pathlib import Path

import pytest
from standin import point, sweep_of
from whole_database import made_whole

from bkray.cluster.options import SweepOptions, check_room
from bkray.cluster.study import open_study
from bkray.config import TrialConfig
from bkray.errors import ConfigError, ResumeError

PROGRAM = """
from bkray.cluster.study import open_study
from sweeps.act import SWEEP
for _ in range(2):
    storage, study = open_study(place.parent, SWEEP)
    assert study.study_name == "act"
    storage.engine.dispose()
"""


def test_a_new_file_gets_its_name_when_all_of_it_is_there(tmp_path: Path) -> None:
    # Optuna takes a file without the index of names for a whole one, and makes a second study.
    assert made_whole(tmp_path / "study.db", PROGRAM)
    assert [path.name for path in tmp_path.iterdir()] == ["study.db"]


def test_a_study_elsewhere_is_never_begun_anew_in_another_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, folder = sweep_of(point(0.1), n_trials=1), tmp_path / "s"
    folder.mkdir()
    for name in ("right", "wrong", "right"):
        monkeypatch.setenv("OPTUNA_STORAGE", f"sqlite:///{tmp_path}/{name}.db?timeout=9")
        if name == "wrong":
            with pytest.raises(ResumeError, match=r"wrong\.db does not hold .*right\.db"):
                open_study(folder, sweep)
            continue
        storage, study = open_study(folder, sweep)
        assert study.study_name == json.loads((folder / "study.json").read_text())["name"]
        storage.engine.dispose()
    assert "timeout" not in (folder / "study.json").read_text(), "a query may hold a password"


def test_a_study_elsewhere_is_refused_beside_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = SweepOptions(out=tmp_path, preset="p", storage="s3://bucket/x", local=True)
    check_room(options, TrialConfig())
    monkeypatch.setenv("OPTUNA_STORAGE", "postgresql://host/optuna")
    with pytest.raises(ConfigError, match=r"OPTUNA_STORAGE does not go with .* s3://bucket/x"):
        check_room(options, TrialConfig())
    (tmp_path / "study.db").touch()
    check_room(options, TrialConfig())
