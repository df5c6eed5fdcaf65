"""Overrides: one spelling of every knob, whoever writes it."""

import itertools
from typing import Any

import pytest

from bkray.errors import ConfigError
from bkray.overrides import acting, build, config_paths, flatten, full_path, parse, trial_id

CONFIGS: list[dict[str, Any]] = [
    {},
    {"depth": "act", "act_lambda": 0.2, "n_experts": 3},
    {"mixer": "attention", "position": "learned", "seed": 7, "arm": "dense-2"},
    {"model": "a.b:c", "model.options.width": 8, "model.options.kind": "wide"},
    {"tokenizer": "words", "corpus": "some/path.txt", "max_bytes": 4096},
    {"train.steps": 3, "speed_reference_layers": 4, "threads": 2, "precision": "float64"},
]


@pytest.mark.parametrize("overrides", CONFIGS, ids=str)
def test_building_from_the_flat_form_gives_the_config_back(overrides: dict[str, Any]) -> None:
    config = build(overrides)
    assert build(flatten(config)) == config
    assert flatten(build(flatten(config))) == flatten(config)


def test_every_path_is_known_by_itself_and_by_its_last_part_where_that_is_unique() -> None:
    paths = config_paths()
    lasts = [path.rpartition(".")[2] for path in paths]
    for path, last in zip(paths, lasts, strict=True):
        assert full_path(path) == path
        if lasts.count(last) == 1 and last not in paths and last != "model":
            assert full_path(last) == path


def test_the_words_of_the_command_line_are_the_ones_that_the_contract_names() -> None:
    words = ["model.d_model=128", "optimizer.lr=3e-4", "act_lambda=0.01", "depth=act"]
    assert parse(words) == {
        "model.d_model": 128,
        "optimizer.lr": 3e-4,
        "model.act_lambda": 0.01,
        "model.depth": "act",
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("3.0", 3.0),
        ("1e-3", 1e-3),
        ("true", True),
        ("True", True),
        ("None", None),
        ("null", None),
        ("wide", "wide"),
        ("a=b", "a=b"),
        ("", ""),
        ('"3"', "3"),
    ],
)
def test_values_read_as_json_where_they_can(text: str, value: Any) -> None:
    said = parse([f"model.options.x={text}"])["model.options.x"]
    assert said == value
    assert type(said) is type(value)


def test_blanks_around_the_equals_sign_do_not_matter() -> None:
    assert parse([" lr = 0.5 "]) == {"optimizer.lr": 0.5}


def test_the_last_word_wins() -> None:
    assert parse(["lr=1", "optimizer.lr=2"]) == {"optimizer.lr": 2}


def test_a_word_without_value_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"written path=value, got 'lr'"):
        parse(["lr"])


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("model.d_modle", "model.d_model"),
        ("d_modl", "model.d_model"),
        ("act_lamda", "model.act_lambda"),
        ("optimizer.lrr", "optimizer.lr"),
        ("n_head", "model.n_heads"),
        ("train.learning.batch_sizes", "train.batch_size"),
        ("sede", "seed"),
    ],
)
def test_an_unknown_path_names_the_nearest(typo: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown config path '{typo}'.*did you mean.*{meant}"):
        build({typo: 1})


@pytest.mark.parametrize("name", ["", ".", "model.", "zzzzzz", "model.d_model.deep", "__class__"])
def test_a_path_like_no_other_is_refused_all_the_same(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown config path"):
        build({name: 1})


def test_an_own_model_is_named_in_short() -> None:
    assert parse(["model=package.module:build", "options.width=8"]) == {
        "model.build": "package.module:build",
        "model.options.width": 8,
    }


def test_acting_leaves_out_what_does_nothing() -> None:
    given = {"model.act_lambda": 0.1, "model.d_model": 8, "model.n_seq": 32, "optimizer.lr": 1.0}
    kept = {"model.d_model": 8, "model.n_seq": 32, "optimizer.lr": 1.0}
    assert acting(given) == kept
    assert acting({**given, "model.depth": "act"}) == {**given, "model.depth": "act"}
    assert acting({"model.build": "a:b", "model.d_model": 8}) == {"model.build": "a:b"}
    for overrides in (
        given,
        {"model.top_k": 2},
        {"model.mixer": "attention", "model.n_values": 2},
    ):
        build(acting(overrides))


def test_ids_do_not_depend_on_spelling_or_order() -> None:
    spellings: list[dict[str, Any]] = [
        {"model.depth": "act", "model.act_lambda": 0.01, "optimizer.lr": 1.0},
        {"act_lambda": 0.01, "depth": "act", "lr": 1},
        {"lr": "1.0", "depth": "act"},
        parse(["depth=act", "lr=1e0", "model.act_lambda=1e-2"]),
        flatten(build({"depth": "act", "lr": 1})),
        {"depth": "act", "lr": 1, "d_model": None, "d_hidden": 256},
    ]
    assert len({trial_id(build(words), "data", "1") for words in spellings}) == 1


def test_ids_change_with_config_data_and_version() -> None:
    base = build({})
    others = [
        *(build(overrides) for overrides in CONFIGS if overrides),
        build({"seed": 1}),
        build({"arm": "dense-4"}),
        build({"lr": 5.0000001e-3}),
    ]
    ids = [trial_id(config, "data", "1") for config in [base, *others]]
    ids += [trial_id(base, "other data", "1"), trial_id(base, "data", "2")]
    assert len(set(ids)) == len(ids)
    assert all(len(one) == 12 and int(one, 16) >= 0 for one in ids)


def test_an_id_stays_what_it_was() -> None:
    """Resuming needs the same id in another process: no hash seed, no order of a set may enter."""
    config = build({"depth": "act"})
    again = build(dict(reversed(flatten(config).items())))
    assert trial_id(config, "d", "v") == trial_id(again, "d", "v")


def test_overrides_are_not_changed_by_building() -> None:
    given: dict[str, Any] = {"model.options": {"width": 8}, "model": "a:b", "model.options.n": 2}
    build(given)
    assert given["model.options"] == {"width": 8}


@pytest.mark.parametrize("order", list(itertools.permutations(["model.options", "options.x"])))
def test_a_knob_inside_of_a_plain_value_is_one_clear_error(order: tuple[str, ...]) -> None:
    values = {"model.options": 3, "options.x": 1}
    with pytest.raises(ConfigError, match=r"model\.options"):
        build({"model": "a:b", **{name: values[name] for name in order}})
