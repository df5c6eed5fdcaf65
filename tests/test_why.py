"""``bkray why`` says in a few lines why a trial ended, ``bkray replay`` lets it happen again."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import faulty_config, recorded
from tiny import write_text
from trials import short_config

from bkray.cli import app
from bkray.errors import ConfigError, DataError, ResumeError
from bkray.train.findings import DIAGNOSIS, FOLDER, RECORD, SNAPSHOT
from bkray.train.team import ALONE

Say = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def broken(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial in which one token of blocks.1.mixer became NaN at step 13."""
    folder = tmp_path_factory.mktemp("broken") / "trial"
    config = faulty_config(text, "blocks.1.mixer", step=13, row=2, position=9)
    recorded(ALONE, config, folder)
    return folder


@pytest.fixture(scope="module")
def fine(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fine") / "trial"
    recorded(ALONE, short_config(text, **{"train.steps": 4}), folder)
    return folder


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Call a verb here; return its status and what it printed."""

    def call(*words: str | Path) -> tuple[int, str]:
        status = app([str(word) for word in words], standalone_mode=False)
        return status, capsys.readouterr().out

    return call


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to / "trial")
    return to / "trial"


def test_why_names_step_module_tensor_token_batch_and_text(broken: Path, say: Say) -> None:
    status, said = say("why", broken)
    assert status == 0
    for words in (
        "diverged at step 16: loss is nan at step 13",
        "first not finite: output of blocks.1.mixer, forward pass of step 13: 16 NaN of 1024",
        "token: position 9 of row 2, which begins at token",
        "text: ",
        "batch: epoch 0, from window 48",
        "repeated 3 steps; the losses are as recorded to the last bit",
        "step   loss (nats)",
        "\n  13           nan",
        "to try: look at blocks.1.mixer",
        f"figure: {broken / FOLDER / 'forensics.png'}",
        f"again: bkray replay {broken}",
    ):
        assert words in said, words
    assert (broken / FOLDER / "forensics.png").read_bytes().startswith(b"\x89PNG")


def test_why_as_json_holds_the_files_and_the_advice(broken: Path, say: Say) -> None:
    told = json.loads(say("why", broken, "--json")[1])
    assert (told["outcome"], told["diagnosis"]["module"]) == ("diverged", "blocks.1.mixer")
    assert told["diagnosis"]["site"]["position"] == 9
    assert [one["step"] for one in told["record"]["steps"]][-1] == 16
    assert told["advice"]
    assert told["figure"].endswith("forensics.png")


def test_replay_hits_the_same_tensor(broken: Path, say: Say) -> None:
    status, said = say("replay", broken)
    assert status == 0
    assert said.startswith("reproduced\nhere: first not finite: output of blocks.1.mixer")
    told = json.loads(say("replay", broken, "--json")[1], parse_constant=pytest.fail)
    assert told["reproduced"]
    assert told["largest_loss_difference"] == 0
    assert told["diagnosis"]["site"] == told["recorded"]["site"]


def test_a_replay_that_breaks_elsewhere_is_status_3(
    broken: Path, tmp_path: Path, say: Say
) -> None:
    folder = copied(broken, tmp_path)
    path = folder / FOLDER / DIAGNOSIS
    path.write_text(path.read_text().replace("blocks.1.mixer", "blocks.0.mixer"))
    status, said = say("replay", folder)
    assert status == 3
    assert said.startswith("not reproduced\n")


def test_why_and_replay_of_an_absurd_learning_rate(text: Path, tmp_path: Path, say: Say) -> None:
    recorded(ALONE, short_config(text, lr=30.0), tmp_path)
    status, said = say("why", tmp_path)
    assert status == 0
    assert "every tensor is finite up to step" in said
    assert "growth began at step 2 in " in said
    assert "to try: lower optimizer.lr (it is 30)" in said
    status, said = say("replay", tmp_path)
    assert status == 0
    assert said.startswith("reproduced\n")


def test_why_without_a_diagnosis_says_so(broken: Path, tmp_path: Path, say: Say) -> None:
    folder = copied(broken, tmp_path)
    (folder / FOLDER / DIAGNOSIS).unlink()
    assert "what broke first is not known" in say("why", folder)[1]
    shutil.rmtree(folder / FOLDER)
    assert "nothing more is known: forensics/ is missing" in say("why", folder)[1]


def test_why_of_a_trial_that_ended_well(fine: Path, say: Say) -> None:
    assert say("why", fine) == (0, "ok at step 4: no reason given\n")


def test_why_of_a_failed_trial_shows_the_end_of_its_error(
    fine: Path, tmp_path: Path, say: Say
) -> None:
    folder = copied(fine, tmp_path)
    outcome = json.loads((folder / "outcome.json").read_text())
    failed = {**outcome, "outcome": "failed", "stop_reason": "KeyError: 'x'"}
    (folder / "outcome.json").write_text(json.dumps(failed))
    (folder / "error.txt").write_text("\n".join(f"line {i}" for i in range(40)))
    said = say("why", folder)[1].splitlines()
    assert said[0] == "failed at step 4: KeyError: 'x'"
    assert said[1] == "the end of error.txt:"
    assert said[-1] == "  line 39"
    assert len(said) == 14


@pytest.mark.parametrize("verb", ["why", "replay"])
def test_a_folder_without_a_trial_is_one_clear_error(verb: str, tmp_path: Path, say: Say) -> None:
    with pytest.raises(ResumeError, match=r"holds no trial: config\.json is missing"):
        say(verb, tmp_path)


def test_a_trial_that_did_not_diverge_cannot_be_replayed(fine: Path, say: Say) -> None:
    with pytest.raises(ResumeError, match="only a trial that diverged can be replayed"):
        say("replay", fine)


@pytest.mark.parametrize("name", [SNAPSHOT, RECORD, DIAGNOSIS])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_forensics_are_one_clear_error(
    name: str, damage: str, broken: Path, tmp_path: Path, say: Say
) -> None:
    folder = copied(broken, tmp_path)
    path = folder / FOLDER / name
    whole = bytearray(path.read_bytes())
    half = len(whole) // 2
    if damage == "cut":
        whole = whole[:half]
    else:
        whole[half] ^= 0x80
    path.write_bytes(whole)
    with pytest.raises(ResumeError, match=rf"{name} cannot be read"):
        say("replay", folder)


def test_a_corpus_that_moved_or_changed_is_one_clear_error(tmp_path: Path, say: Say) -> None:
    path = write_text(tmp_path / "own.txt", seed=5)
    recorded(ALONE, faulty_config(path, "head", step=3), tmp_path / "trial")
    write_text(path, seed=6)
    with pytest.raises(DataError, match=r"is not the text that .* was trained on"):
        say("replay", tmp_path / "trial")
    path.unlink()
    with pytest.raises(DataError, match=r"own\.txt"):
        say("replay", tmp_path / "trial")
    assert "output of head" in say("why", tmp_path / "trial")[1]


def test_a_model_that_is_gone_is_one_clear_error(broken: Path, tmp_path: Path, say: Say) -> None:
    folder = copied(broken, tmp_path)
    config = folder / "config.json"
    config.write_text(config.read_text().replace("faults:faulty", "no_such_module:faulty"))
    with pytest.raises(ConfigError, match="no module 'no_such_module'"):
        say("replay", folder)


def test_a_trial_of_a_gpu_is_replayed_on_the_cpu(broken: Path, tmp_path: Path, say: Say) -> None:
    folder = copied(broken, tmp_path)
    told: dict[str, Any] = json.loads((folder / "config.json").read_text())
    told["config"] |= {"train.device": "cuda", "train.precision": "bf16"}
    (folder / "config.json").write_text(json.dumps(told))
    status, said = say("replay", folder)
    assert status == 0
    assert "note: bf16 autocast of a CPU stands in for that of a GPU" in said
    assert "the losses are as recorded to the last bit" not in said


@pytest.mark.slow
def test_why_needs_no_torch(broken: Path) -> None:
    read = (
        "import sys; from pathlib import Path; from bkray.report.explain import explain; "
        "print(explain(Path(sys.argv[1]))[0]); sys.exit('torch' in sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", read, str(broken)],
        capture_output=True,
        text=True,
        env=dict(os.environ),
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "diverged at step 16: loss is nan at step 13\n"
