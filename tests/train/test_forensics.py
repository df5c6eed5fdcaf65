"""What a trial remembers is the last good state and the last steps, and files say it again."""

import json
import math
from pathlib import Path

import pytest
import torch
from faults import faulty_config, recorded
from trials import of, short_config

from bkray.errors import ResumeError
from bkray.events import Rewound, TrialEnded
from bkray.stability import Verdict
from bkray.train import checkpoint
from bkray.train.findings import (
    DIAGNOSIS,
    FOLDER,
    RECORD,
    SNAPSHOT,
    Record,
    Remembered,
    read_diagnosis,
    read_record,
)
from bkray.train.forensics import Memory, write_record
from bkray.train.team import ALONE


def step(number: int, loss: float = 1.0) -> Remembered:
    return Remembered(
        step=number,
        loss_nats=loss,
        grad_norm=0.5,
        block_norms=(0.3, 0.4),
        masked=False,
        batch={"epoch": 0, "position": 4 * number},
        starts=(7, 8, number),
    )


def record(*steps: Remembered, verdict: Verdict, snapshot_step: int = 2) -> Record:
    return Record(
        verdict=verdict,
        snapshot_step=snapshot_step,
        split=1,
        blocks=("a", "b"),
        steps=steps,
    )


def test_a_snapshot_is_a_copy() -> None:
    memory, weight = Memory(), torch.ones(2)
    assert memory.snapshot_step == -1
    state = {"progress": {"step": 5}, "model": {"weight": weight}, "rng": [{"cuda": None}]}
    memory.keep(state)
    weight += 1
    first = memory.copy()
    assert first["model"]["weight"].tolist() == [1, 1]
    first["model"]["weight"] += 1
    assert memory.copy()["model"]["weight"].tolist() == [1, 1]
    assert memory.snapshot_step == 5


def test_steps_taken_again_after_a_rewind_replace_the_others() -> None:
    memory = Memory()
    memory.steps.extend(step(number) for number in (1, 2, 3, 4))
    memory.steps.extend(step(number, loss=2.0) for number in (3, 4, 5))
    assert [(one.step, one.loss_nats) for one in memory.history] == [
        *((1, 1.0), (2, 1.0)),
        *((3, 2.0), (4, 2.0), (5, 2.0)),
    ]


@pytest.mark.parametrize(
    ("named", "rule", "repeated", "is_finite", "is_hidden"),
    [
        (4, "nonfinite", [3, 4], False, False),
        (3, "nonfinite", [3], False, True),
        (3, "explosion", [3], True, False),
        (1, "drift", [3, 4, 5], True, False),
        (5, "validation", [3, 4, 5], False, False),
    ],
)
def test_the_steps_to_repeat_end_where_the_verdict_says(
    named: int, rule: str, repeated: list[int], is_finite: bool, is_hidden: bool
) -> None:
    verdict = Verdict("diverged", "", named, rule)  # type: ignore[arg-type]
    told = record(step(1), step(2), step(3), step(4, math.nan), step(5), verdict=verdict)
    assert [one.step for one in told.to_repeat] == repeated
    assert (told.is_finite, told.is_hidden) == (is_finite, is_hidden)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    verdict = Verdict("diverged", "loss is inf at step 4", 4, "nonfinite")
    told = record(step(3), step(4, math.inf), verdict=verdict)
    snapshot = {"progress": {"step": 2}, "rng": [{"cuda": None}]}
    write_record(tmp_path / FOLDER, told, snapshot)
    read = read_record(tmp_path / FOLDER)
    assert (read.verdict, read.blocks, read.steps[0]) == (verdict, told.blocks, told.steps[0])
    assert math.isnan(read.steps[1].loss_nats)  # JSON knows no infinity
    assert checkpoint.read(tmp_path / FOLDER / SNAPSHOT) == snapshot
    assert json.loads((tmp_path / FOLDER / RECORD).read_text())["steps"][1]["loss_nats"] is None


@pytest.mark.parametrize("said", ["", "{}", "[]", '{"steps": 3}', '{"verdict": {"no": 1}}'])
def test_a_damaged_file_is_one_clear_error(said: str, tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text(said)
    (tmp_path / DIAGNOSIS).write_text(said)
    with pytest.raises(ResumeError, match=r"record\.json cannot be read"):
        read_record(tmp_path)
    with pytest.raises(ResumeError, match=r"diagnosis\.json cannot be read"):
        read_diagnosis(tmp_path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match="it is missing"):
        read_record(tmp_path)
    assert read_diagnosis(tmp_path) is None


def test_a_trial_without_a_folder_or_a_divergence_leaves_nothing(
    text: Path, tmp_path: Path
) -> None:
    recorded(ALONE, short_config(text, **{"train.steps": 4}), tmp_path)
    assert not (tmp_path / FOLDER).exists()


def test_what_is_repeated_is_what_was_trained_on_after_a_rewind(
    text: Path, tmp_path: Path
) -> None:
    """The last rewind leaves a snapshot whose batches are not those that came next."""
    config = faulty_config(text, "head", step=13, lr=3.0, on_spike="rewind", max_interventions=1)
    events = recorded(ALONE, config, tmp_path)
    assert [(one.step, one.to_step) for one in of(Rewound, events)] == [(10, 0)]
    assert of(TrialEnded, events)[0].reason == "loss is nan at step 13"
    found = read_diagnosis(tmp_path / FOLDER)
    assert found is not None
    assert (found.module, found.n_repeated, found.largest_loss_difference) == ("head", 13, 0)


def test_the_snapshot_is_from_before_an_explosion_began(text: Path, tmp_path: Path) -> None:
    """It is not renewed at step 10, where the loss has been high since step 4."""
    recorded(ALONE, short_config(text, "bk", lr=3.0), tmp_path)
    told = read_record(tmp_path / FOLDER)
    assert told.verdict.rule == "explosion"
    assert told.verdict.step > 10
    assert told.snapshot_step == 0
