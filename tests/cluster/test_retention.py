"""When a sweep is over, its disk holds one checkpoint per trial and a second one on the front."""

import json
from pathlib import Path

import pytest
import torch

from bkray.cluster.retention import settle_checkpoints
from bkray.train import checkpoint

ALL = {checkpoint.NAME, checkpoint.PREVIOUS, checkpoint.BEST}


def trial(sweep: Path, name: str, outcome: str) -> Path:
    folder = sweep / "trials" / name / checkpoint.FOLDER
    folder.mkdir(parents=True)
    for file in ALL:
        torch.save({"weights": torch.ones(3)}, folder / file)
    (folder.parent / "outcome.json").write_text(json.dumps({"outcome": outcome}))
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_front_keeps_its_best_and_the_others_their_last(tmp_path: Path) -> None:
    first, second = (trial(tmp_path, name, "ok") for name in ("first", "second"))
    assert settle_checkpoints(tmp_path, {"first"}) == 3
    assert names(first) == {checkpoint.NAME, checkpoint.BEST}
    assert names(second) == {checkpoint.NAME}
    assert settle_checkpoints(tmp_path, {"first"}) == 0, "again changes nothing"


@pytest.mark.parametrize("outcome", ["diverged", "pruned", "interrupted", "failed", "oom"])
def test_a_trial_that_did_not_end_well_keeps_all(tmp_path: Path, outcome: str) -> None:
    folder = trial(tmp_path, "one", outcome)
    assert settle_checkpoints(tmp_path, ()) == 0
    assert names(folder) == ALL


def test_a_damaged_last_checkpoint_keeps_the_one_before(tmp_path: Path) -> None:
    folder = trial(tmp_path, "one", "ok")
    (folder / checkpoint.NAME).write_bytes(b"half")
    assert settle_checkpoints(tmp_path, ()) == 0
    assert names(folder) == ALL
