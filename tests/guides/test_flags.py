"""Every flag of the guides' script means something here: a config path, a value, a command."""

import pytest
from typer.main import get_command

from bkray.cli import app
from bkray.errors import ConfigError
from bkray.guides.flags import FLAGS
from bkray.overrides import build, config_paths
from sweeps.load import load

GUIDES = (
    "seq_len multi_length sequence_lengths d_model n_layers n_heads d_ff batch_size epochs lr "
    "weight_decay grad_clip dataset data_limit eval_only streaming eval_tokens log_interval "
    "save_dir device seed use_birman_schwinger use_scattering_router use_semiseparable"
)
ALONGSIDE = {"model.router": {"model.n_experts": 4}}
"""What a path needs beside it to do something."""


def assert_resolves(meaning: str) -> None:
    """Fail unless ``meaning`` is a config path, one with a value that is allowed, or a command."""
    first, *words = meaning.split()
    if first != "bkray":
        path, equals, value = meaning.partition("=")
        assert path in config_paths(), f"no config path {path}"
        if equals:
            build({path: value, **ALONGSIDE.get(path, {})})
        return
    verbs = get_command(app).commands  # type: ignore[attr-defined]
    assert words[0] in verbs, f"no verb {words[0]}"
    options = {name for parameter in verbs[words[0]].params for name in parameter.opts}
    for word in words[1:]:
        if word.startswith("--"):
            assert word in options, f"no option {word}"
        else:
            load(word)


@pytest.mark.parametrize("flag", GUIDES.split())
def test_every_flag_of_the_guides_resolves(flag: str) -> None:
    assert_resolves(FLAGS[flag])


def test_there_are_no_others() -> None:
    assert list(FLAGS) == GUIDES.split()


@pytest.mark.parametrize(
    "meaning",
    [
        "model.n_sequences",
        "train.monitor=birman",
        "bkray evaluate",
        "bkray eval --streams",
        "bkray sweep ladders",
    ],
)
def test_a_meaning_that_is_none_is_noticed(meaning: str) -> None:
    with pytest.raises((AssertionError, ConfigError)):
        assert_resolves(meaning)
