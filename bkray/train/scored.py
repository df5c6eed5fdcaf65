"""What evaluation says of the windows that it scored: loss, layers, lengths, kinds.

Letters: W windows, C numbers of a window.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Row(NamedTuple):
    """The numbers of each window, (W,): sums over its sites."""

    inside_nats: Tensor
    """Loss of the computed sites; that of the others, answered cheaply, is ``beyond_nats``."""
    beyond_nats: Tensor
    late_nats: Tensor
    """Loss of the second half of the sites, which have context."""
    computed: Tensor
    """Sites."""
    remainder: Tensor
    scored: Tensor
    """Sites that have a target, and those of the second half that do."""
    late_scored: Tensor

    @property
    def loss_nats(self) -> float:
        """The mean over all that is scored, per site."""
        return float((self.inside_nats + self.beyond_nats).sum() / self.scored.sum())

    @property
    def late_loss_nats(self) -> float:
        return float(self.late_nats.sum() / self.late_scored.sum())


def depth_metrics(counts: Sequence[int], remainder: float | None) -> dict[str, float]:
    """Return mean and histogram of the layers that tokens ran through, and more of halting ones.

    ``counts[l]`` tokens ran through ``l`` layers; ``remainder`` is what halting left over, summed
    over all of them, and gives the ponder cost. ``None`` for a policy that does not halt.
    """
    n_tokens = sum(counts)
    mean = sum(depth * n for depth, n in enumerate(counts)) / n_tokens
    shares = {depth: n / n_tokens for depth, n in enumerate(counts)}
    if remainder is None:
        return {
            "depth/avg_layers_executed": mean,
            **{f"depth/share_at_layer_{depth}": share for depth, share in shares.items()},
        }
    variance = sum((depth - mean) ** 2 * share for depth, share in shares.items())
    return {
        "act/ponder_cost": mean + remainder / n_tokens,
        "act/avg_layers_executed": mean,
        "act/std_layers_executed": math.sqrt(variance),
        **{f"act/share_at_layer_{depth}": shares[depth] for depth in range(1, len(counts))},
    }


def sure_metrics(counts: Sequence[int], n_tokens: int) -> dict[str, float]:
    """Return which share of the tokens heads stopped, in all and at each layer.

    ``counts[l]`` were stopped at layer ``l``; those that no head stopped are counted at 0.
    """
    if not counts:
        return {}
    shares = {
        f"exit/share_at_layer_{depth}": counts[depth] / n_tokens for depth in range(1, len(counts))
    }
    return {"exit/share_sure": sum(shares.values()), **shares}


def length_metrics(row: Row, bins: Sequence[int]) -> dict[str, float]:
    """Return how long rows were computed, of ``bins``, and the loss on either side of the cut."""
    n_inside = float(row.computed.sum())
    n_beyond = float(row.scored.sum()) - n_inside
    metrics = {
        "length/avg_length": float(row.computed.mean()),
        "length/share_beyond": n_beyond / (n_inside + n_beyond),
        "length/loss_inside_nats": float(row.inside_nats.sum()) / n_inside,
        **{f"length/share_at_{n}": float((row.computed == n).double().mean()) for n in bins},
    }
    if n_beyond:
        metrics["length/loss_beyond_nats"] = float(row.beyond_nats.sum()) / n_beyond
    return metrics


def kind_metrics(
    row_WC: Tensor, kinds: Sequence[str], is_learned: bool
) -> Iterator[tuple[str, float]]:
    """Yield the numbers of each kind of window; window ``w`` is of ``kinds[w % len(kinds)]``."""
    for kind in dict.fromkeys(kinds[: len(row_WC)]):
        own_W = [w for w in range(len(row_WC)) if kinds[w % len(kinds)] == kind]
        row = Row(*row_WC[own_W].unbind(1))
        yield f"kinds/{kind}/loss_nats", row.loss_nats
        yield f"kinds/{kind}/ppl", float(torch.tensor(row.loss_nats, dtype=torch.float64).exp())
        if is_learned:
            yield f"kinds/{kind}/avg_length", float(row.computed.mean())
