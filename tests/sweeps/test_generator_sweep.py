"""The generator sweep: its points, its end, and one trial under the guides' names."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from generators import write_embeddings

from bkray.cluster.tuner import SweepOptions, planned
from bkray.errors import ConfigError
from sweeps.generator import SWEEP

Say = Callable[..., subprocess.CompletedProcess[str]]
LENGTH = "generator.training_sequence_length"
TINY = ("data.n_frames=64", "data.n_channels=4", "data.n_per_class=12", "train.steps=8")


def test_small_trains_every_length_once_over_seeds_that_can_decide() -> None:
    plans = planned(SWEEP, SweepOptions(out=Path("none"), preset="small"))
    assert [one.overrides[LENGTH] for one in plans] == [4, 8, 16, 32, 64]
    assert {one.n_seeds for one in plans} == {8}
    assert len({one.config.model_copy(update={"generator": None}) for one in plans}) == 1


def test_full_is_what_the_guides_describe() -> None:
    plans = planned(SWEEP, SweepOptions(out=Path("none"), preset="full"))
    points = {
        (one.config.n_seq, one.config.generator.latent_dim, one.config.generator.upsampling)
        for one in plans
    }
    assert len(points) == len(plans) == 5 * 3 * 2
    assert {(one.config.data.n_frames, one.config.data.n_channels) for one in plans} == {
        (1214, 768)
    }


def test_embeddings_of_ones_own_take_the_place_of_made_ones(tmp_path: Path) -> None:
    path = str(write_embeddings(tmp_path / "own.npy", seed=0))
    own = SweepOptions(out=Path("none"), preset="small", overrides={"data.embeddings": path})
    assert {one.config.data.embeddings for one in planned(SWEEP, own)} == {path}
    asked = {"data.embeddings": path, "data.spectrum": 1}
    with pytest.raises(ConfigError, match=r"data\.spectrum does nothing with data\.embeddings="):
        planned(SWEEP, SweepOptions(out=Path("none"), preset="small", overrides=asked))


def test_it_runs_to_its_end_and_goes_on_where_it_was(say_here: Say) -> None:
    words = ("sweep", "generator", "--preset", "smoke", "--local", "--out", "runs/one", "--json")
    done = say_here(*words, "data.n_channels=4", "data.spectrum=3")
    assert done.returncode == 0, done.stderr
    rows = pq.read_table("runs/one/trials.parquet").to_pylist()
    assert [row[f"param/{LENGTH}"] for row in rows] == [row["seq_len"] for row in rows] == [4, 8]
    assert all(0 < row["explained_variance"] < 1 and row["kl_nats"] > 0 for row in rows)
    assert all(0 <= row["downstream_accuracy"] <= 1 for row in rows)
    assert {row["best_val_ppl"] for row in rows} == {None}
    shown = json.loads(say_here("show", "runs/one", "--json").stdout)["generator"]
    assert [one["training_sequence_length"] for one in shown["lengths"]] == [4, 8]
    assert say_here("resume", "runs/one").returncode == 0
    assert pq.read_table("runs/one/trials.parquet").to_pylist() == rows


@pytest.mark.filterwarnings("ignore::UserWarning")  # a training length of 4
def test_one_trial_is_trained_under_the_guides_names(say_here: Say) -> None:
    settings = {
        "feda2v_config": {
            "generator_training_sequence_length": 4,
            "generator_training_epochs": 2,
            "generator_hidden_dim": 8,
            "generator_latent_dim": 4,
            "synthetic_samples_per_class": 4,
            "pretrained_generator_path": None,
        }
    }
    Path("g.json").write_text(json.dumps(settings))
    data = TINY[:3]
    done = say_here("train", *data, "--settings", "g.json", "--out", "t", "--json")
    assert done.returncode == 0, done.stderr
    config = json.loads(Path("t/config.json").read_text())["config"]
    assert (config[LENGTH], config["generator.output_sequence_length"]) == (4, 4)
    assert config["train.steps"] == 2 * -(-8 * 8 // 16), "two epochs of 8 training rows a class"
    over = say_here("train", *TINY, "--settings", "g.json", "--out", "u", "--json")
    assert json.loads(over.stdout)["summary"]["steps"] == 8, "an override wins"


def test_settings_that_train_nothing_are_refused(say_here: Say) -> None:
    Path("g.json").write_text(
        json.dumps({"generator_training_mode": False, "pretrained_generator_path": "x.pt"})
    )
    done = say_here("train", *TINY, "--settings", "g.json")
    assert done.returncode == 2 and "trains none" in done.stderr
