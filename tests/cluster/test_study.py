"""The searcher's file on disk."""

from pathlib import Path

from whole_database import made_whole

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
