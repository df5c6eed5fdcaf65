"""The config refuses what cannot be meant, in one line: field, value, range, what to do."""

import re
from typing import Any

import pytest
from pydantic import ValidationError

from bkray.config import ModelConfig, TrialConfig
from bkray.errors import ConfigError
from bkray.overrides import build, flatten, full_path

ACT = {"depth": "act"}
OWN = {"model": "package.module:build"}

REFUSED: list[tuple[dict[str, Any], str]] = [
    # what the issue names
    ({"n_seq": 0}, r"model\.n_seq: .*\(allowed: 2 <= n_seq\), got 0"),
    ({**ACT, "act_threshold": 1.5}, r"model\.act_threshold: .*0.* < act_threshold <= 1.*got 1\.5"),
    (
        {"n_experts": 2, "top_k": 3},
        r"model\.top_k must be between 1 and model\.n_experts=2, got 3: raise n_experts",
    ),
    ({"position": "rope"}, r"model\.position=rope does nothing .*mixer=bk: use none or learned"),
    ({"act_lambda": 0.1}, r"model\.act_lambda=0\.1 does nothing .*dense: set model\.depth=act"),
    (
        {**ACT, "n_layers": 1},
        r"model\.depth=act does nothing with model\.n_layers=1.*at least 2 or model\.depth=dense",
    ),
    # knobs that do nothing in the model at hand
    ({"act_threshold": 0.9}, r"model\.act_threshold=0\.9 does nothing"),
    ({"halt_lr_factor": 2.0}, r"model\.halt_lr_factor=2\.0 does nothing"),
    ({"top_k": 1}, r"model\.top_k=1 does nothing with one expert: .*set model\.n_experts"),
    ({"balance_weight": 0.1}, r"model\.balance_weight=0\.1 does nothing with one expert"),
    ({"mixer": "attention", "n_values": 2}, r"n_values=2 does nothing .*mixer=attention"),
    (
        {"n_values": 0, "semiseparable_rank": 2},
        r"semiseparable_rank=2 does nothing with model\.n_values=0",
    ),
    ({"mixer": "linear_recurrence", "n_heads": 2}, r"n_heads=2 does nothing .*linear_recurrence"),
    ({"mixer": "linear_recurrence", "position": "rope"}, r"position=rope does nothing"),
    ({"mixer": "mamba", "n_heads": 2}, r"n_heads=2 does nothing .*mixer=mamba"),
    ({"mixer": "mamba", "position": "rope"}, r"position=rope does nothing .*mixer=mamba"),
    ({"d_state": 8}, r"d_state=8 does nothing in a model with mixer=bk"),
    ({"mixer": "attention", "expand": 2}, r"expand=2 does nothing .*mixer=attention"),
    ({"model.options.width": 3}, r"model\.options=.* does nothing without model\.build"),
    ({**OWN, "d_model": 8}, r"model\.d_model=8 does nothing .*give it as model\.options"),
    ({**OWN, "depth": "act"}, r"model\.depth=act does nothing .*give it as model\.options"),
    ({"vocab_size": 100}, r"data\.vocab_size does nothing with data\.tokenizer=bytes"),
    # numbers out of range
    ({**ACT, "act_threshold": 0}, r"0.* < act_threshold <= 1.*got 0"),
    ({**ACT, "act_lambda": -0.1}, r"model\.act_lambda: .*0.* <= act_lambda.*got -0\.1"),
    ({**ACT, "halt_lr_factor": 0}, r"model\.halt_lr_factor: .*got 0"),
    ({"n_seq": 1}, r"2 <= n_seq"),
    ({"n_layers": 0}, r"1 <= n_layers"),
    ({"n_heads": 0}, r"1 <= n_heads"),
    ({"d_model": 1}, r"2 <= d_model"),
    ({"d_hidden": 0}, r"1 <= d_hidden"),
    ({"n_experts": 0}, r"1 <= n_experts"),
    ({"n_experts": 2, "top_k": 0}, r"1 <= top_k"),
    ({"dropout": 1.0}, r"0.* <= dropout < 1"),
    ({"dropout": -0.1}, r"0.* <= dropout < 1"),
    ({"lr": 0}, r"optimizer\.lr: .*0.* < lr"),
    ({"beta2": 1}, r"0.* <= beta2 < 1"),
    ({"final_lr_fraction": 2}, r"0.* <= final_lr_fraction <= 1"),
    ({"clip_norm": 0}, r"0.* < clip_norm"),
    ({"train.steps": 0}, r"1 <= steps"),
    ({"max_bytes": 10}, r"1024 <= max_bytes"),
    ({"tokenizer": "words", "vocab_size": 1}, r"2 <= vocab_size"),
    ({"seed": -1}, r"0 <= seed"),
    ({"seed": 2**63}, r"seed < 9223372036854775808"),
    ({"threads": 0}, r"1 <= threads"),
    # no numbers
    ({"lr": float("nan")}, r"optimizer\.lr: .*finite"),
    ({"lr": float("inf")}, r"optimizer\.lr: .*finite"),
    ({"n_experts": float("inf")}, r"model\.n_experts: .*finite"),
    ({"d_model": float("nan")}, r"model\.d_model: .*finite"),
    ({"n_layers": 2.5}, r"model\.n_layers: .*got 2\.5"),
    ({"n_layers": "many"}, r"model\.n_layers: .*got 'many'"),
    ({"n_layers": [4]}, r"model\.n_layers: .*got \[4\]"),
    # words
    (
        {"mixer": "BK"},
        r"model\.mixer: .*'bk', 'attention', 'linear_recurrence' or 'mamba', got 'BK'",
    ),
    ({"mixer": "BK", "n_heads": 4}, r"model\.mixer: .*got 'BK'"),
    ({"mixer": ["bk"]}, r"model\.mixer: .*got \['bk'\]"),
    ({"depth": "ACT", "act_lambda": 0.1}, r"act_lambda=0\.1 does nothing .*set model\.depth=act"),
    ({"position": "rotary"}, r"model\.position: .*got 'rotary'"),
    ({"precision": "fp16"}, r"train\.precision: .*got 'fp16'"),
    ({"device": "tpu"}, r"train\.device: .*got 'tpu'"),
    ({"corpus": None}, r"data\.corpus: .*got None"),
    ({"model": "no colon"}, r"model\.build: .*got 'no colon'"),
    # what only fits together
    (
        {"mixer": "attention", "d_model": 10, "n_heads": 2},
        r"d_model must be a multiple of 2 \* model\.n_heads .*d_model=10 with n_heads=2",
    ),
    ({"batch_size": 4, "accumulation": 3}, r"train\.batch_size=4 must be a multiple of .*=3"),
]


@pytest.mark.parametrize(("overrides", "words"), REFUSED, ids=lambda part: str(part)[:50])
def test_what_cannot_be_meant_is_refused_in_one_line(overrides: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        build(overrides)
    said = str(refused.value)
    assert "\n" not in said
    assert len(said) < 250
    assert "pydantic" not in said


ACCEPTED: list[dict[str, Any]] = [
    {**ACT, "act_threshold": 1},
    {**ACT, "n_layers": 2},
    {"n_experts": 2, "top_k": 2},
    {"n_seq": 2},
    {"mixer": "attention", "position": "none"},
    {"warmup_steps": 10_000},
    {"seed": 2**63 - 1},
    {**ACT, "act_lambda": 0},
]


@pytest.mark.parametrize("overrides", ACCEPTED, ids=str)
def test_the_ends_of_a_range_are_allowed(overrides: dict[str, Any]) -> None:
    said = flatten(build(overrides))
    assert {name: said[full_path(name)] for name in overrides} == overrides


@pytest.mark.parametrize("overrides", [{}, ACT, {"n_experts": 4}, {"mixer": "attention"}, OWN])
def test_idle_knobs_are_none_and_acting_ones_have_a_default(overrides: dict[str, Any]) -> None:
    model = build(overrides).model
    act = (model.act_threshold, model.act_lambda, model.halt_lr_factor)
    assert (None in act) is (act == (None, None, None)) is (model.depth != "act")
    assert (model.top_k is None) is (model.balance_weight is None)
    assert (model.top_k is None) is (model.n_experts in (None, 1))
    assert (model.d_model is None) is (model.build is not None) is (model.options is not None)


def test_the_hidden_width_follows_the_width() -> None:
    assert build({"d_model": 24}).model.d_hidden == 96
    assert build({"d_model": 24, "d_hidden": 10}).model.d_hidden == 10


def test_none_means_the_default_so_that_it_can_be_taken_back() -> None:
    assert build({"d_model": None, "act_lambda": None}) == build({})
    assert build({"tokenizer": "words", "vocab_size": None}) == build({"tokenizer": "words"})


def test_numbers_written_as_text_mean_the_number() -> None:
    """YAML and environment variables may hand over text."""
    assert build({"n_experts": "2", "d_model": "32"}) == build({"n_experts": 2, "d_model": 32})
    assert build({"n_experts": "2.0"}).model.top_k == 1


def test_a_config_is_frozen() -> None:
    config = build({})
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.model.d_model = 3  # type: ignore[misc]


def test_two_configs_share_nothing() -> None:
    first, second = TrialConfig(), TrialConfig()
    assert first == second
    assert first.model is not second.model


def test_python_code_may_build_sections_by_hand() -> None:
    config = TrialConfig(model=ModelConfig(depth="act", n_layers=2), seed=3)
    assert config == build({"depth": "act", "n_layers": 2, "seed": 3})
    with pytest.raises(ValidationError, match="act_lambda"):
        ModelConfig(act_lambda=0.1)


def test_every_field_of_the_flat_form_can_be_read_by_a_person() -> None:
    for path, value in flatten(build({**ACT, "n_experts": 2})).items():
        assert re.fullmatch(r"[a-z_0-9.]+", path)
        assert isinstance(value, bool | int | float | str)
