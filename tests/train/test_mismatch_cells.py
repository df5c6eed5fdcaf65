"""A trial that is evaluated at other lengths than its own, cell by cell."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import write_text
from torch import Tensor
from trials import of, play, short_config

from bkray.config import STRATEGIES, TrialConfig
from bkray.data.of_trial import windows
from bkray.data.shards import prepare
from bkray.errors import DataError
from bkray.events import CellDone, StepsDone, TrialEnded, rows
from bkray.train.evaluate import evaluate
from bkray.train.mismatch import BUCKETS, PROJECTION_PAIRS, cells, loss_metrics
from bkray.train.retrieval import fit, noisy, ranking, twinned
from bkray.trial import compose

MEASURED = {"mismatch.windows": 8, "mismatch.items": 12, "train.precision": "float64"}


def config_of(text: Path, mixer: str = "bk", **knobs: Any) -> TrialConfig:
    asked = {"mismatch.lengths": "32", **MEASURED, **knobs}
    return short_config(text, mixer, **{"train.steps": 12, "eval_every": 12, **asked})


def told(text: Path, mixer: str = "bk", **knobs: Any) -> dict[tuple[int, str], dict[str, float]]:
    events = of(CellDone, play(config_of(text, mixer, **knobs), None))
    return {(one.n_eval, one.strategy): dict(one.metrics) for one in events}


@pytest.fixture(scope="module")
def of_bk(text: Path) -> dict[tuple[int, str], dict[str, float]]:
    return told(text)


def test_there_is_a_cell_for_each_length_and_strategy(
    of_bk: dict[tuple[int, str], dict[str, float]],
) -> None:
    assert list(of_bk) == [(32, strategy) for strategy in STRATEGIES]
    assert all(math.isfinite(v) for cell in of_bk.values() for v in cell.values())
    for cell in of_bk.values():
        assert cell["ppl"] == pytest.approx(math.exp(cell["loss_nats"]))
        parts = [cell[f"loss_nats_to_{n}"] for n in range(4, 33, 4)]
        assert len(parts) == BUCKETS
        assert cell["loss_nats"] == pytest.approx(sum(parts) / BUCKETS, abs=1e-10)
        assert cell["late_loss_nats"] == pytest.approx(sum(parts[4:]) / 4, abs=1e-10)


def test_a_row_reads_the_same_up_to_the_train_length(
    of_bk: dict[tuple[int, str], dict[str, float]],
) -> None:
    """A causal model that has not come to its train length yet has lost nothing."""
    first = [of_bk[32, strategy]["loss_nats_to_8"] for strategy in STRATEGIES]
    assert first[1:3] == pytest.approx([first[0]] * 2, abs=1e-10)
    late = {of_bk[32, strategy]["late_loss_nats"] for strategy in STRATEGIES}
    assert len(late) == len(STRATEGIES)


def test_only_cutting_merges_items(of_bk: dict[tuple[int, str], dict[str, float]]) -> None:
    merged = {name: cell["identical_items"] for (_, name), cell in of_bk.items()}
    assert merged.pop("truncate") == 6
    assert set(merged.values()) == {0}
    natural = {name: cell["identical_natural_items"] for (_, name), cell in of_bk.items()}
    assert natural.pop("truncate") == 2, "of six the text itself merges two, four were planted"
    assert set(natural.values()) == {0}
    assert of_bk[32, "truncate"]["recall_long"] <= 0.75  # one of two twins at best


def test_items_cut_off_are_ranked_by_their_start(text: Path) -> None:
    config = config_of(text)
    shards = prepare(config.data, 16)
    run = compose(config, shards, None)
    found = {one.strategy: one.metrics for one in cells(run, shards)}
    run.model.eval()

    def embedded(tokens: Tensor) -> Tensor:
        seen: list[Tensor] = []
        handle = run.model.norm.register_forward_hook(lambda _, __, out: seen.append(out))
        with torch.no_grad():
            run.model(tokens)
        handle.remove()
        return seen[0][:, -1]

    own = windows(shards, "train", 16, PROJECTION_PAIRS)[0]
    project = fit(embedded(own), embedded(noisy(own)))
    items = twinned(windows(shards, "valid", 32, 12)[0])
    for strategy, sites in (("truncate", slice(16)), ("sliding_window", slice(16, 32))):
        pair = (project(embedded(x[:, sites])) for x in (noisy(items), items))
        expected = ranking(*pair)
        seen = found[strategy]
        assert (seen["mrr_long"], seen["recall_long"]) == pytest.approx(expected, abs=1e-10)


def test_states_of_windows_like_those_of_training_have_not_moved(
    of_bk: dict[tuple[int, str], dict[str, float]],
) -> None:
    """And are not held against themselves."""
    seen = of_bk[32, "sliding_window"]
    assert [name for (_, name), cell in of_bk.items() if "is_reference" in cell] == [
        "sliding_window"
    ]
    assert not any(name.startswith(("shift_", "own_")) for name in seen)
    for cell in of_bk.values():
        if cell is seen:
            continue
        assert cell["own_late_loss_nats"] == pytest.approx(seen["late_loss_nats"], abs=1e-10)
    assert of_bk[32, "extrapolate"]["shift_energy"] > 0
    assert of_bk[32, "truncate"]["reach_tokens"] < of_bk[32, "extrapolate"]["reach_tokens"]


def test_whole_rows_score_as_an_evaluation_of_them(text: Path) -> None:
    config = config_of(text, "attention", position="rope")
    shards = prepare(config.data, config.model.n_seq)
    run = compose(config, shards, None)
    pair = windows(shards, "valid", 32, 8)
    expected = evaluate(run.model, *pair, batch_size=3, autocast=run.autocast)
    [whole] = [one for one in cells(run, shards) if one.strategy == "extrapolate"]
    assert whole.metrics["loss_nats"] == pytest.approx(expected.loss_nats, abs=1e-10)
    late = expected.metrics["context/late_loss_nats"]
    assert whole.metrics["late_loss_nats"] == pytest.approx(late, abs=1e-10)
    assert run.model.training


def test_trials_of_every_train_length_score_the_same_tokens(text: Path) -> None:
    """An embedding of nothing but zeros answers by the head's bias alone: which is none."""
    scored = []
    for n_seq in (8, 16, 32):
        config = config_of(text, n_seq=n_seq, batch_size=2)
        shards = prepare(config.data, n_seq)
        run = compose(config, shards, None)
        with torch.no_grad():
            run.model.head.weight.zero_()
            run.model.head.weight[:, 0] = torch.linspace(-1, 1, len(run.model.head.weight))
            run.model.norm.register_forward_hook(lambda _, __, out: torch.ones_like(out))
        seen = [one.metrics for one in cells(run, shards)]
        scored += [(one["loss_nats"], one["late_loss_nats"]) for one in seen]
    assert len(scored) == 2 * len(STRATEGIES) + 1
    for pair in scored[1:]:
        assert pair == pytest.approx(scored[0], abs=1e-10)


def test_at_its_own_length_a_model_is_what_retraining_means(text: Path) -> None:
    cell = told(text, **{"mismatch.lengths": "16,32"})
    assert list(cell) == [(16, "retrain"), *((32, strategy) for strategy in STRATEGIES)]
    assert "shift_energy" not in cell[16, "retrain"]
    assert cell[16, "retrain"]["identical_items"] == 0


def test_a_table_of_positions_cannot_extrapolate(text: Path) -> None:
    cell = told(text, "attention", position="learned")
    assert cell[32, "extrapolate"] == {}
    assert all(cell[32, strategy] for strategy in STRATEGIES[1:])
    event = CellDone(step=3, n_eval=32, strategy="extrapolate", metrics={})
    assert [row[3:] for row in rows(event)] == [("mismatch/32/extrapolate/applicable", 0.0)]


def test_training_is_what_it_is_without(text: Path) -> None:
    plain = short_config(text, "bk", **{"train.steps": 12, "eval_every": 12})
    without, measured = (
        play(config, None) for config in (plain, config_of(text, **{"train.precision": "float32"}))
    )
    assert not of(CellDone, without)
    losses = [[e.loss_nats for e in of(StepsDone, events)] for events in (without, measured)]
    assert losses[0] == losses[1]
    [ended] = of(TrialEnded, measured)
    assert ended.outcome == "ok"


def test_the_overlap_moves_the_windows(text: Path) -> None:
    none, most = (
        told(
            text, **{"mismatch.overlap": overlap, "mismatch.strategies": "sliding_window,truncate"}
        )
        for overlap in (0.0, 0.9)
    )
    assert none[32, "sliding_window"]["loss_nats"] == none[32, "truncate"]["loss_nats"]
    assert most[32, "sliding_window"]["loss_nats"] != none[32, "sliding_window"]["loss_nats"]


def test_too_little_text_is_told_before_training(tmp_path: Path) -> None:
    text = write_text(tmp_path / "short.txt", seed=0, n_words=400)
    with pytest.raises(DataError, match=r"rows of mismatch\.lengths=32 tokens, and 4 are needed"):
        play(config_of(text), None)


def test_losses_that_are_no_numbers_are_told() -> None:
    loss = torch.ones(4, 8).double()
    loss[1, 6] = math.nan
    seen = loss_metrics(loss)
    assert math.isnan(seen["ppl"]) and math.isnan(seen["late_ppl"])
    assert seen["loss_nats_to_1"] == 1.0
    assert math.isinf(loss_metrics(loss.nan_to_num() * 1e3)["ppl"])
