"""What every language model that ships must do: each mixer x feature x experts x positions.

Letters: B batch, N sites, V vocabulary. Equality is judged in float64, where routing and halting
do not flip by rounding.
"""

from typing import Any

import pytest
import torch
from combinations import (
    COMBINATIONS,
    DEPTHS,
    Combination,
    adapts,
    combined,
    config_of,
    within,
)
from tiny import (
    GO,
    MIXERS,
    STOP,
    VOCABULARY,
    random_tokens,
    tiny_config,
    tiny_model,
    uneven_rows,
)
from torch import Tensor, nn

from bkray.errors import ConfigError
from bkray.nn.block import Block
from bkray.nn.build import feed_forward
from bkray.nn.depth import DenseDepth
from bkray.nn.lm import LanguageModel, Prediction
from bkray.nn.own_model import largest_leak
from bkray.train.step import losses, token_loss_nats

SITES = 16


@pytest.fixture(params=COMBINATIONS, ids="-".join)
def combination(request: pytest.FixtureRequest) -> Any:
    return request.param


def tolerance(combination: Combination) -> float:
    """Exact where nothing is gathered; else sums may be taken in another order."""
    _, depth, experts, _ = combination
    return 0.0 if (depth, experts) == ("dense", "one") else 1e-10


@torch.no_grad()
def test_tokens_after_t_move_no_logit_at_or_before_t(combination: Any) -> None:
    model, tokens = combined(combination), uneven_rows(SITES)
    before = model(tokens).logits_BNV
    allowed = tolerance(combination)
    for t in range(SITES - 1):
        for later in (STOP, GO, None):
            other = tokens.clone()
            other[:, t + 1 :] = random_tokens(4, SITES - t - 1, seed=t) if later is None else later
            after = model(other).logits_BNV
            assert (after - before)[:, : t + 1].abs().max() <= allowed, (t, later)
        assert (after - before)[:, t + 1].abs().max() > 1e-6


@torch.no_grad()
def test_the_check_for_users_models_finds_no_leak_either(combination: Any) -> None:
    leak = largest_leak(combined(combination), uneven_rows(SITES), VOCABULARY)
    assert leak <= tolerance(combination)


@torch.no_grad()
def test_a_row_alone_says_what_it_says_in_its_batch(combination: Any) -> None:
    model, tokens = combined(combination), uneven_rows(SITES)
    whole = model(tokens)
    for row in range(len(tokens)):
        alone = model(tokens[row : row + 1])
        assert (alone.logits_BNV[0] - whole.logits_BNV[row]).abs().max() <= 1e-10
        assert torch.equal(alone.layers_BN[0], whole.layers_BN[row])


@torch.no_grad()
def test_a_prefix_alone_says_what_it_says_in_the_whole(combination: Any) -> None:
    model, tokens = combined(combination), uneven_rows(SITES)
    whole = model(tokens).logits_BNV
    for n_sites in (1, 2, 7, 12):
        said = model(tokens[:, :n_sites]).logits_BNV
        assert (said - whole[:, :n_sites]).abs().max() <= 1e-10


@torch.no_grad()
def test_every_token_is_scored_however_little_is_computed(combination: Any) -> None:
    model, tokens = combined(combination), uneven_rows(SITES)
    for mode in (True, False):
        prediction = model.train(mode)(tokens)
        loss_BN = token_loss_nats(prediction, tokens)
        assert loss_BN.shape == prediction.layers_BN.shape == tokens.shape
        assert loss_BN.isfinite().all()
        assert all(exit.shape == prediction.logits_BNV.shape for exit in prediction.exits)


def test_layers_are_whole_numbers_from_1_to_all(combination: Any) -> None:
    model = combined(combination)
    prediction: Prediction = model(uneven_rows(SITES))
    layers_BN, feature = prediction.layers_BN, combination[1]
    assert layers_BN is not None
    assert not layers_BN.is_floating_point()
    assert layers_BN.max() == len(model.blocks)
    assert (prediction.remainder_BN is None) is ("act" not in feature)
    if prediction.lengths is not None:
        behind = torch.arange(SITES) >= prediction.lengths.computed_B[:, None]
        assert prediction.lengths.computed_B.unique().numel() > 1
        assert (layers_BN[behind] == 0).all()
        layers_BN = layers_BN.masked_fill(behind, 1)
    assert layers_BN.min() >= 1
    if not adapts(combination):
        site_0 = 2 if "multiscale" in feature else len(model.blocks)
        assert (prediction.layers_BN[:, 0] == site_0).all()
        assert (prediction.layers_BN[:, 1:5] == len(model.blocks)).all()
    elif prediction.lengths is None:
        at_all_sites = "multiscale" not in feature or "exit" in feature or "each" in feature
        least = 1 if at_all_sites else 2 + ("act" in feature)
        assert (layers_BN[0, 1:] == least).all(), "the row of STOP stops as soon as it can"
        assert (layers_BN[1, 1:] == len(model.blocks)).all(), "the row of GO never stops"
        assert layers_BN[2:].unique().numel() >= (3 if feature in ("act", "exit") else 2)


def test_every_parameter_gets_a_gradient(combination: Any) -> None:
    tokens, knobs = uneven_rows(SITES), config_of(combination)
    model = combined(combination).train()
    torch.autograd.backward(losses(model(tokens), tokens.roll(-1, 1), knobs, None)["total"])
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # which expert is asked, and which channel a steered halting unit reads, are up to chance
        if ".experts." not in name and ".halting." not in name:
            assert parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_a_nan_comes_out(combination: Any) -> None:
    model, tokens = combined(combination), random_tokens(2, SITES)
    tokens[0, 6] = STOP
    tokens[:, 7:] = GO
    tokens[1] = GO
    within(model).embedding.weight[STOP, 3] = torch.nan
    said = model(tokens).logits_BNV
    assert said[0, 6].isnan().all()
    assert said[1].isfinite().all(), "the other row does not hold that token"


@pytest.mark.parametrize(
    "combination",
    [c for c in COMBINATIONS if c[1] not in DEPTHS or c[3] == "none"],
    ids="-".join,
)
def test_bf16_autocast_trains(combination: Any) -> None:
    model, tokens = combined(combination).float(), uneven_rows(SITES)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(tokens).logits_BNV.dtype == torch.bfloat16 or "learned" in combination[1]
        said = losses(model.train()(tokens), tokens, config_of(combination), None)
    torch.autograd.backward(said["total"])
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert max(float(gradient.abs().max()) for gradient in gradients) > 0


@torch.no_grad()
def test_dropout_acts_in_training_alone(combination: Any) -> None:
    plain, model = combined(combination), combined(combination, dropout=0.3)
    tokens = uneven_rows(SITES)
    assert torch.equal(model.eval()(tokens).logits_BNV, plain(tokens).logits_BNV)
    model.train()
    assert not torch.equal(model(tokens).logits_BNV, model(tokens).logits_BNV)


def test_a_bk_model_hears_a_token_64_sites_on() -> None:
    """Influence is the norm of the Jacobian of the logits by one token's embedding."""
    model = tiny_model("bk", d_model=64, n_layers=4, n_heads=16, n_values=6, d_hidden=256)
    tokens = random_tokens(1, 96)
    embedded: list[Tensor] = []
    model.embedding.register_forward_hook(lambda *said: embedded.append(said[-1]))
    logits = model(tokens).logits_BNV

    def influence(source: int, target: int) -> float:
        rows = [
            torch.autograd.grad(logits[0, target, v], embedded[0], retain_graph=True)[0][0, source]
            for v in range(VOCABULARY)
        ]
        return float(torch.stack(rows).norm())

    for source in (0, 10, 30):
        assert influence(source, source + 64) >= 1e-6 * influence(source, source + 1)
        assert influence(source + 1, source) == 0.0


class _Mixer(nn.Module):
    def __init__(self, causal: bool | None) -> None:
        super().__init__()
        if causal is not None:
            self.causal = causal

    def forward(self, hidden_BND: Tensor, position_BN: Tensor) -> Tensor:
        return hidden_BND.mean(1, keepdim=True).expand_as(hidden_BND)


@pytest.mark.parametrize("causal", [False, None])
def test_a_mixer_that_does_not_declare_itself_causal_is_refused(causal: bool | None) -> None:
    plain = tiny_config().model
    block = Block(16, _Mixer(causal), feed_forward(plain), 0.0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"causal mixers, got _Mixer.*leak the next token"):
        LanguageModel(
            vocab_size=VOCABULARY, d_model=16, blocks=[block], depth=DenseDepth(), n_positions=None
        )


def test_more_tokens_than_learned_positions_are_refused() -> None:
    model = tiny_model(position="learned", n_seq=8)
    model(random_tokens(1, 8))
    with pytest.raises(ConfigError, match=r"knows 8 positions, got 9 tokens: raise model\.n_seq"):
        model(random_tokens(1, 9))


@torch.no_grad()
def test_learned_positions_tell_equal_tokens_apart() -> None:
    tokens = torch.full((1, 8), GO)
    for mixer in MIXERS:
        said = tiny_model(mixer, position="learned")(tokens).logits_BNV[0]
        assert (said[0] - said[1]).abs().max() > 1e-6
    said = tiny_model("attention", position="none")(tokens).logits_BNV[0]
    assert (said[0] - said[1]).abs().max() <= 1e-12


def test_embeddings_start_small() -> None:
    model = tiny_model(position="learned", d_model=64)
    assert model.positions is not None
    for table in (model.embedding, model.positions):
        assert 0.015 < table.weight.std() < 0.025
