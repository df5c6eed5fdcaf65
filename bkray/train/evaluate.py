"""Loss on fixed windows, in evaluation mode, and what the depth policy did there."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from bkray.train.step import token_loss_nats


class Evaluation(NamedTuple):
    """Mean loss in nats per token, and further numbers under their full names."""

    loss_nats: float
    metrics: dict[str, float]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    inputs_WN: Tensor,
    targets_WN: Tensor,
    *,
    batch_size: int,
    autocast: torch.autocast,
) -> Evaluation:
    """Score every window, ``batch_size`` at a time; the model is left in the mode it came in.

    The histogram of layers is returned as ``act/share_at_layer_<l>``, for policies that say it.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    sums: list[Tensor] = []
    layers: list[Tensor] = []
    remainders: list[Tensor] = []
    for inputs, targets in zip(
        torch.split(inputs_WN, batch_size), torch.split(targets_WN, batch_size), strict=True
    ):
        with autocast:
            prediction = model(inputs.to(device))
        sums.append(token_loss_nats(prediction, targets.to(device)).double().sum())
        if prediction.layers_BN is not None and prediction.remainder_BN is not None:
            layers.append(prediction.layers_BN.flatten())
            remainders.append(prediction.remainder_BN.flatten())
    model.train(was_training)
    loss_nats = float(torch.stack(sums).sum()) / targets_WN.numel()
    if not layers:
        return Evaluation(loss_nats, {})
    return Evaluation(loss_nats, depth_metrics(torch.cat(layers), torch.cat(remainders)))


def depth_metrics(layers_T: Tensor, remainder_T: Tensor) -> dict[str, float]:
    """Return ponder cost, and mean, spread and histogram of the layers that tokens ran through."""
    precise = layers_T.double()
    shares = layers_T.bincount() / layers_T.numel()
    return {
        "act/ponder_cost": float((precise + remainder_T).mean()),
        "act/avg_layers_executed": float(precise.mean()),
        "act/std_layers_executed": float(precise.std(correction=0)),
        **{f"act/share_at_layer_{depth}": float(shares[depth]) for depth in range(1, len(shares))},
    }
