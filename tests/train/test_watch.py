"""What is watched of a model's blocks is what their tensors hold."""

import math

import pytest
import torch
from tiny import VOCABULARY, random_tokens, tiny_config
from torch import nn

from bkray.nn.build import built_in
from bkray.train.watch import Blocks


@pytest.mark.parametrize(
    ("values", "largest"),
    [
        ([1.0, -3.0, 2.0], 3.0),
        ([1.0, 2.5, -2.0], 2.5),
        ([0.0, 0.0, 0.0], 0.0),
        ([1.0, -math.inf, 2.0], math.inf),
        ([math.inf, -1.0, math.nan], math.nan),
    ],
)
def test_the_largest_activation_is_a_magnitude_and_nan_wins(
    values: list[float], largest: float
) -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    model[0].register_forward_hook(lambda *_: torch.tensor([values]))
    with Blocks(model).activations() as seen:
        model(torch.zeros(1, 3))
        model(torch.zeros(1, 3))
    assert float(seen["0"]) == pytest.approx(largest, nan_ok=True)


def test_a_block_that_did_not_run_is_missing_and_two_passes_are_one() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Linear(2, 2)})
    with Blocks(model).activations() as seen:
        once = model["used"](torch.ones(1, 2))
        twice = model["used"](torch.full((1, 2), -5.0))
    assert set(seen) == {"used"}
    assert float(seen["used"]) == float(torch.cat([once, twice]).detach().abs().max())
    assert not model["used"]._forward_hooks


def test_the_blocks_of_a_wrapped_model_are_told_apart_and_heard() -> None:
    model = built_in(tiny_config(length="learned").model, VOCABULARY)
    blocks = Blocks(model)
    inner = ("embedding", "blocks.0", "blocks.1", "blocks.2", "norm", "head")
    assert set(blocks.names) == {*(f"model.{name}" for name in inner), "predictor", "beyond"}
    with blocks.activations() as seen:
        model(random_tokens(2, 16))
    assert set(seen) == set(blocks.names)
