"""``bkray eval`` scores a checkpoint: on windows, as one stream, and by what context is worth."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import recorded
from torch.nn.modules.module import register_module_forward_pre_hook
from trials import short_config

from bkray.cli import app
from bkray.errors import ConfigError, ResumeError
from bkray.nn.lm import LanguageModel
from bkray.train.team import ALONE

Say = Callable[..., str]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Call the verb here; return what it printed."""

    def call(*words: str | Path) -> str:
        capsys.readouterr()
        assert app(["eval", *map(str, words)], standalone_mode=False) == 0
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="module")
def trial(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval") / "trial"
    knobs = {"depth": "act", "n_seq": 32, "eval_windows": 24, "train.chunk": 12}
    recorded(ALONE, short_config(text, "bk", **{**knobs, "train.steps": 20}), folder)
    return folder


def told(said: str) -> Any:
    return json.loads(said, parse_constant=pytest.fail)


def test_the_windows_of_a_split(trial: Path, say: Say) -> None:
    said = say(trial, "--split", "test")
    assert said.startswith("test: ") and "nats/token at step 20" in said
    score = told(say(trial, "--json"))
    assert score["split"] == "valid" and score["act/avg_layers_executed"] >= 1


def test_a_stream_of_the_split_once(trial: Path, say: Say) -> None:
    score = told(say(trial, "--stream", "--json"))
    assert score["passes"] == 1 and score["chunk"] == 4096 and score["step"] == 20
    assert score["n_chunks"] == -(-score["n_tokens"] // 4096)
    assert sum(b["last"] - b["first"] + 1 for b in score["buckets"]) == score["n_tokens"]
    windows = told(say(trial, "--json"))["loss_nats"]
    assert score["loss_nats"] == pytest.approx(windows, abs=0.3)


def test_a_stream_longer_than_the_text_says_so(trial: Path, say: Say) -> None:
    n_tokens = 3 * told(say(trial, "--stream", "--json"))["n_tokens"]
    said = say(trial, "--stream", "--tokens", str(n_tokens), "--chunk", "512")
    assert f"{n_tokens:,} tokens in {-(-n_tokens // 512):,} chunks of 512" in said
    assert "3.00 passes over the text: repeated from its start" in said
    assert "attention" not in said
    assert "2-3  " in said and "tokens/s, peak memory" in said
    score = told(say(trial, "--stream", "--tokens", "700", "--chunk", "9", "--json"))
    other = told(say(trial, "--stream", "--tokens", "700", "--chunk", "700", "--json"))
    assert score["loss_nats"] == pytest.approx(other["loss_nats"], abs=1e-4)


def test_how_far_a_stream_is_goes_beside_the_answer(
    trial: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bkray.cli.eval.SECONDS_BETWEEN_NEWS", 0.0)
    words = ["eval", str(trial), "--stream", "--tokens", "100", "--chunk", "50", "--json"]
    assert app(words, standalone_mode=False) == 0
    said = capsys.readouterr()
    told(said.out)
    assert [line.split(",")[0] for line in said.err.splitlines()] == [
        "50 of 100 tokens",
        "100 of 100 tokens",
    ]


def test_what_context_is_worth(trial: Path, say: Say) -> None:
    said = say(trial, "--context")
    assert "the last 8 targets of 32 windows\n" in said, "whatever train.eval_windows is"
    found = told(say(trial, "--context", "--json"))
    assert [one["distance"] for one in found["benefits"]] == [1, 2, 4, 8, 16]
    assert (found["verdict"] == "flat") is ("flat: no distance" in said)
    assert (found["n_sites"], found["n_windows"], found["n_windows_needed"]) == (32, 32, 8)


def test_too_few_windows_of_context_and_more_than_there_are(trial: Path, say: Say) -> None:
    assert "undecided: 1 windows cannot show any benefit, 8 would decide" in say(
        trial, "--context", "--windows", "1"
    )
    said = say(trial, "--context", "--windows", "1000000")
    assert "windows, all that the split holds\n" in said


def test_the_answers_of_recall_are_what_context_is_asked_for(tmp_path: Path, say: Say) -> None:
    knobs = {"data.recall_distance": 16, "n_seq": 32, "train.steps": 2}
    config = short_config(tmp_path, "linear_recurrence", **{**knobs, "data.corpus": "recall"})
    recorded(ALONE, config, tmp_path)
    found = told(say(tmp_path, "--context", "--json"))["kinds"]
    assert list(found) == ["distance_4", "distance_8", "distance_16"]
    assert {(one["n_windows"], one["n_targets"]) for one in found.values()} == {(32, 1)}
    assert "distance_16, answers alone:" in say(tmp_path, "--context")


def test_no_more_rows_are_scored_at_once_than_training_holds(
    text: Path, tmp_path: Path, say: Say
) -> None:
    plan = {"train.steps": 2, "batch_size": 12, "accumulation": 4}
    recorded(ALONE, short_config(text, "bk", **plan), tmp_path)
    rows = set[int]()
    hook = register_module_forward_pre_hook(
        lambda module, args: rows.add(len(args[0])) if isinstance(module, LanguageModel) else None
    )
    for words in ((), ("--context", "--windows", "8")):
        say(tmp_path, *words)
        assert max(rows) == 3
        rows.clear()
    hook.remove()


def test_attention_says_its_window(text: Path, tmp_path: Path, say: Say) -> None:
    recorded(ALONE, short_config(text, "attention", **{"train.steps": 4}), tmp_path)
    said = say(tmp_path, "--stream", "--tokens", "200")
    assert "200 tokens in 1 chunks of 4,096, attention over the last 16 tokens" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tokens", "5"), "--tokens=5 does nothing without --stream"),
        (("--chunk", "5", "--context"), "--chunk=5 does nothing without --stream"),
        (("--stream", "--context"), "give one of them"),
        (("--windows", "5"), "--windows=5 does nothing without --context"),
        (("--context", "--windows", "0"), "--windows must be at least 1, got 0"),
        (("--split", "train"), "valid or test, got 'train'"),
        (("--stream", "--tokens", "0"), "at least 1, got 0"),
    ],
    ids=str,
)
def test_a_mistake_is_one_clear_error(
    trial: Path, say: Say, words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        say(trial, *words)


def test_a_folder_without_a_trial_is_one_clear_error(tmp_path: Path, say: Say) -> None:
    with pytest.raises(ResumeError, match=r"config\.json is missing"):
        say(tmp_path, "--stream")
