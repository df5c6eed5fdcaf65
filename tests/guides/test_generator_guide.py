"""The guides' configuration of the sequence generator."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from bkray.errors import ConfigError
from bkray.guides.generator import Guided, Rows, generator_overrides, read_settings

EXAMPLES = Path(__file__).parents[2] / "examples" / "generator"
ROWS = Rows(n_frames=1214, n_channels=768, n_train=100, n_classes=8)
ROOM = 22 * 2**30
TRAINING, OUTPUT = "generator_training_sequence_length", "generator_output_sequence_length"
OLD = "generator_target_sequence_length"
PRETRAINED = {"pretrained_generator_path": "generator.pt"}


def guided(settings: dict[str, Any], rows: Rows = ROWS, **knobs: Any) -> Guided:
    return generator_overrides(settings, rows, **{"batch_size": 16, "memory_bytes": ROOM, **knobs})


def test_every_name_becomes_its_config_path() -> None:
    said = guided(
        {
            TRAINING: 16,
            OUTPUT: 200,
            "generator_training_epochs": 3,
            "pretrained_generator_path": "generator.pt",
            "generator_training_mode": True,
            "generator_only_mode": True,
            "synthetic_samples_per_class": 10,
            "generator_type": "bk_vae",
            "use_learned_upsampling": True,
            "use_conditioned_vae": True,
            "generator_augmentation": "noise",
            "generator_hidden_dim": 64,
            "generator_latent_dim": 8,
        }
    )
    assert said.trains
    assert said.overrides == {
        "generator.training_sequence_length": 16,
        "generator.output_sequence_length": 200,
        "train.steps": 3 * 7,
        "generator.pretrained": "generator.pt",
        "generator.synthetic_per_class": 10,
        "generator.network": "bk",
        "generator.upsampling": "learned",
        "generator.conditioned": True,
        "generator.augmentation": "noise",
        "generator.hidden_dim": 64,
        "generator.latent_dim": 8,
    }


def test_null_is_as_if_left_out_and_names_may_stand_under_their_section() -> None:
    plain = guided({})
    assert plain.overrides["generator.training_sequence_length"] == 32
    assert plain.overrides["generator.output_sequence_length"] == 32, "the guides' null"
    nulls = {name: None for name in (TRAINING, OUTPUT, "use_conditioned_vae", OLD)}
    assert guided(nulls) == plain
    assert guided({"feda2v_config": None}) == plain
    assert guided({"feda2v_config": {TRAINING: 16}}) == guided({TRAINING: 16})
    on, off = (guided({"generator_augmentation": value}).overrides for value in (True, False))
    assert (on["generator.augmentation"], off["generator.augmentation"]) == ("all", "off")


def test_the_deprecated_name_is_migrated_and_warned_about() -> None:
    with pytest.warns(DeprecationWarning, match=f"{OLD} is deprecated: write {TRAINING}"):
        old = guided({OLD: 16})
    assert old == guided({TRAINING: 16})
    with pytest.raises(ConfigError, match=f"{OLD}=16 is the old name of {TRAINING}=8: drop"):
        guided({OLD: 16, TRAINING: 8})


@pytest.mark.parametrize("length", [2, 4])
def test_a_length_of_4_is_taken_and_called_a_major_loss(length: int) -> None:
    with pytest.warns(UserWarning, match="major loss of information: 1214 frames"):
        said = guided({TRAINING: length})
    assert said.overrides["generator.training_sequence_length"] == length
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guided({TRAINING: 8})


def test_samples_alone_are_drawn_from_what_was_trained_before() -> None:
    said = guided({**PRETRAINED, "synthetic_samples_per_class": 5})
    assert not said.trains
    assert "train.steps" not in said.overrides
    assert guided({**PRETRAINED, "generator_training_mode": False}) == guided(PRETRAINED)
    assert guided({**PRETRAINED, "generator_training_mode": True}).trains
    guided({**PRETRAINED, TRAINING: 1214})  # nothing is trained, so nothing is refused


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"generator_training_length": 8}, "unknown name 'generator_training_length': did you"),
        ({TRAINING: 1215}, "=1215 is above the length of the rows, 1214 frames"),
        ({TRAINING: 1}, "must be a whole number of at least 2, got 1"),
        ({"feda2v_config": {TRAINING: 8}, OUTPUT: 9}, f"{OUTPUT} beside feda2v_config would not"),
        ({TRAINING: 0}, "must be a whole number of at least 2, got 0"),
        ({TRAINING: 8.5}, "must be a whole number of at least 2, got 8.5"),
        ({TRAINING: True}, "must be a whole number of at least 2, got True"),
        ({OUTPUT: 16}, f"{OUTPUT} must be at least {TRAINING}=32, got 16"),
        ({"use_conditioned_vae": "yes"}, "use_conditioned_vae must be true or false, got 'yes'"),
        ({"generator_type": "gan"}, "generator_type must be one of vae, bk_vae, got 'gan'"),
        (
            {"use_conditioned_vae": False, "synthetic_samples_per_class": 3},
            "synthetic_samples_per_class does nothing with use_conditioned_vae=false",
        ),
        ({"generator_only_mode": False}, "asks for adapters beside the generator"),
        ({"generator_training_mode": False}, "needs a pretrained_generator_path"),
        ({**PRETRAINED, "generator_training_epochs": 3}, "generator_training_epochs does nothing"),
        ({**PRETRAINED, "generator_augmentation": True}, "generator_augmentation does nothing"),
        ({"use_learned_upsampling": True}, "use_learned_upsampling does nothing with"),
        ({"generator_augmentation": "blur"}, "generator_augmentation must be"),
    ],
)
def test_what_is_not_allowed_is_one_clear_error(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        guided(settings)


def test_a_set_up_that_does_not_fit_is_refused_with_the_estimate() -> None:
    with pytest.raises(ConfigError, match=r"1,911,194,624 parameters .* 28\.65 GiB .* are free"):
        guided({TRAINING: 1214})
    assert guided({TRAINING: 1214}, memory_bytes=64 * 2**30).trains
    with pytest.raises(ConfigError, match="are free"):
        guided({}, memory_bytes=2**20)
    assert guided({TRAINING: 1214}, memory_bytes=None).trains, "the config's own check comes later"


def test_files_are_read_safely(tmp_path: Path) -> None:
    for name, text in (("a.json", json.dumps({TRAINING: 8})), ("a.yaml", f"{TRAINING}: 8")):
        (tmp_path / name).write_text(text)
        assert read_settings(tmp_path / name) == {TRAINING: 8}
    for name, text in (
        ("bad.json", "{"),
        ("bad.yaml", "a: ["),
        ("list.json", "[1]"),
        ("unsafe.yaml", "a: !!python/object/apply:os.getcwd []"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=name):
            read_settings(tmp_path / name)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_settings(tmp_path / "none.json")


@pytest.mark.filterwarnings("ignore:generator_training_sequence_length=4 is a major loss")
@pytest.mark.parametrize(
    ("name", "training", "output", "trains"),
    [
        ("minimal_memory.json", 4, 4, True),
        ("full_sequence.json", 32, 1214, False),
        ("balanced.yaml", 32, 1214, True),
    ],
)
def test_the_examples_load(name: str, training: int, output: int, trains: bool) -> None:
    said = guided(read_settings(EXAMPLES / name))
    assert said.trains == trains
    assert said.overrides["generator.training_sequence_length"] == training
    assert said.overrides["generator.output_sequence_length"] == output
