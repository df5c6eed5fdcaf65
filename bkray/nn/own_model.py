"""The contract of a user's own model, and the check that a trial runs before it trains one."""

import copy

import torch
from torch import Tensor, nn

from bkray.errors import ConfigError
from bkray.nn.lm import Prediction

LEAK_TOLERANCE = 1e-8
"""Largest change of an earlier logit, in float64, that rounding may cause."""


def check_own_model(model: object, vocab_size: int, n_seq: int, *, name: str) -> None:
    """Check what ``name`` built: a module, ``Prediction`` out, right shape, no leak, all trained.

    Raises:
        ConfigError: the first part of the contract that does not hold.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{name} must return a torch.nn.Module, got {type(model).__name__}")
    n_sites = min(n_seq, 16)
    tokens_BN = torch.arange(2 * n_sites).view(2, n_sites) % vocab_size
    # A copy in float64: routing and rounding must not be mistaken for a leak.
    twin = copy.deepcopy(model).double().eval()
    said = twin(tokens_BN)
    if not isinstance(said, Prediction):
        raise ConfigError(f"{name}: the model must return a bkray.nn.lm.Prediction")
    if said.logits_BNV.shape != (2, n_sites, vocab_size):
        raise ConfigError(
            f"{name}: logits must be (B, N, V) = {(2, n_sites, vocab_size)}, "
            f"got {tuple(said.logits_BNV.shape)}"
        )
    leak = largest_leak(twin, tokens_BN, vocab_size)
    if not leak <= LEAK_TOLERANCE:
        raise ConfigError(
            f"{name}: changing a token moves earlier logits by {leak:.2g}: "
            "the model sees the future, and its loss would be meaningless"
        )
    torch.autograd.backward(said.logits_BNV.sum())
    idle = [path for path, p in twin.named_parameters() if p.requires_grad and p.grad is None]
    if idle:
        raise ConfigError(f"{name}: no gradient reaches {idle[0]}: freeze it or use it")


def largest_leak(model: nn.Module, tokens_BN: Tensor, vocab_size: int) -> float:
    """Return the largest change of a logit at or before ``t`` when all tokens after ``t`` change.

    Every ``t`` is tried; NaN comes out where the model returns one.
    """
    with torch.no_grad():
        before = model(tokens_BN).logits_BNV
        moved = [0.0]
        for t in range(tokens_BN.shape[1] - 1):
            other = tokens_BN.clone()
            other[:, t + 1 :] = (other[:, t + 1 :] + 1 + t) % vocab_size
            after = model(other).logits_BNV
            moved.append(float((after - before)[:, : t + 1].abs().max()))
    return float(torch.tensor(moved).max())
