"""The guides' length predictor, and bins of one's own. Letters: B batch, N sites."""

import pytest
import torch
from guided import D, N, V, tokens
from lengthy import choose_unevenly, wrapped
from torch import nn

from bkray.errors import ConfigError
from bkray.guides import SequenceLengthPredictor


def test_the_predictor_says_lengths_and_if_asked_their_shares() -> None:
    torch.manual_seed(0)
    predictor = SequenceLengthPredictor(D, max_seq_len=64, num_length_bins=4)
    assert (predictor.d_model, predictor.max_seq_len, predictor.num_length_bins) == (D, 64, 4)
    assert predictor.length_bins.tolist() == [16, 32, 48, 64]
    nn.init.normal_(predictor.predictor.up.weight, std=5.0)
    x = torch.randn(32, 64, D)
    lengths, shares = predictor(x, return_distribution=True)
    assert shares.shape == (32, 4)
    assert (shares.sum(1) - 1).abs().max() <= 1e-5
    assert lengths.dtype == torch.long
    assert lengths.unique().numel() > 1
    assert torch.equal(lengths, predictor.length_bins[shares.argmax(1)])
    assert torch.equal(predictor(x), lengths)
    assert torch.equal(predictor(x[:, :16]), lengths), "the shortest bin is all that it sees"


@pytest.mark.parametrize("number_first", [False, True])
def test_bins_may_be_assigned_in_either_order_and_the_output_layer_follows(
    number_first: bool,
) -> None:
    model, x = wrapped(), tokens(16)
    model(x, use_adaptive_length=True)
    predictor = model.length_predictor
    assignments = [("length_bins", torch.tensor([3, 5, 24])), ("num_length_bins", 3)]
    for name, value in reversed(assignments) if number_first else assignments:
        setattr(predictor, name, value)
    assert model.num_length_bins == 3
    assert predictor.length_bins.tolist() == [3, 5, 24]
    layer = predictor.predictor.down
    assert (layer.out_features, layer.weight.dtype) == (3, torch.float64)
    choose_unevenly(model)
    _, info = model(x, use_adaptive_length=True)
    assert set(info["predicted_lengths"].tolist()) <= {3, 5, 24}
    assert info["length_probs"].shape == (16, 3)
    said = model.get_length_statistics()
    assert said["length_bins"] == [3, 5, *[n for n in said["length_bins"] if 5 < n < 24], 24]
    assert sum(said["length_distribution"]) == pytest.approx(100)
    before = predictor.predictor.down
    predictor.length_bins = [3, 5, 24]
    assert predictor.predictor.down is before, "the same bins are no news"


def test_bins_that_cannot_be_are_refused() -> None:
    model = wrapped()
    predictor = model.length_predictor
    predictor.num_length_bins = 3
    with pytest.raises(ConfigError, match="length_bins has 4 lengths and num_length_bins is 3"):
        model(tokens(), use_adaptive_length=True)
    with pytest.raises(ConfigError, match="length_bins has 4 lengths and num_length_bins is 3"):
        predictor(torch.zeros(1, N, D))
    assert model(tokens()).shape == (3, N, V), "the base model needs no bins"
    for wrong in ([8, 4, 24], [4, 8, 16], [0, 24], []):
        with pytest.raises(ConfigError, match=r"must grow from at least 1 to max_seq_len=24"):
            predictor.length_bins = torch.tensor(wrong, dtype=torch.long)
    for odd in (torch.tensor([4.5, 24.0]), torch.tensor([[4, 24]])):
        with pytest.raises(ConfigError, match="must be a row of whole numbers"):
            predictor.length_bins = odd
    assert predictor.length_bins.tolist() == [6, 12, 18, 24], "as it was"
