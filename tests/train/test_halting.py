"""Advice on a collapsed halting policy, in the words of the guides."""

import pytest

from bkray.train.halting import advice
from bkray.train.scored import depth_metrics


def seen(*layers: int) -> dict[str, float]:
    counts = [layers.count(depth) for depth in range(max(layers) + 1)]
    return depth_metrics(counts, 0.5 * len(layers))


def test_metrics_of_the_depth_are_mean_spread_histogram_and_ponder_cost() -> None:
    assert seen(1, 1, 2, 4) == pytest.approx(
        {
            "act/ponder_cost": 2.5,
            "act/avg_layers_executed": 2.0,
            "act/std_layers_executed": 1.5**0.5,
            "act/share_at_layer_1": 0.5,
            "act/share_at_layer_2": 0.25,
            "act/share_at_layer_3": 0.0,
            "act/share_at_layer_4": 0.25,
        }
    )


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([1] * 200, "all halt at layer 1 (100.0% of tokens): lower model.act_lambda"),
        ([1] * 199 + [4], "all halt at layer 1 (99.5% of tokens)"),
        ([4] * 200, "none halts before layer 4 (100.0% of tokens): raise model.act_lambda"),
        ([1, 4] * 100, "high variance (most tokens run through very few layers or nearly all)"),
        ([1, 1, 4] * 100, "high variance"),
        ([1, 2, 3, 4] * 50, ""),
        ([2] * 200, ""),
        ([1] * 150 + [2] * 50, ""),
    ],
)
def test_each_collapse_is_named_with_its_remedy(layers: list[int], words: str) -> None:
    said = advice(seen(*layers), 4)
    assert said.startswith(words)
    assert bool(said) is bool(words)


def test_two_layers_have_nothing_in_between_to_be_missed() -> None:
    assert advice(seen(*[1, 2] * 100), 2) == ""


def test_a_model_without_halting_needs_no_advice() -> None:
    assert advice({}, 4) == ""
    assert advice({"val/loss_nats": 1.0}, 4) == ""
