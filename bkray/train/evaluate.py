"""Loss on fixed windows, in evaluation mode, and how much of the model was run there.

Letters: W windows, B of them at once, N sites, V vocabulary, K bins of the length, L layers, C
numbers of a window.
"""

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bkray.nn.lm import Prediction
from bkray.train.chunked import in_chunks
from bkray.train.step import Part, token_loss_nats
from bkray.train.team import ALONE, Team


class Evaluation(NamedTuple):
    """Mean loss in nats per token, and further numbers under their full names."""

    loss_nats: float
    metrics: dict[str, float]


def evaluate(
    model: nn.Module,
    inputs_WN: Tensor,
    targets_WN: Tensor,
    *,
    batch_size: int,
    autocast: torch.autocast,
    kinds: Sequence[str] = (),
    chunk: int | None = None,
    team: Team = ALONE,
) -> Evaluation:
    """Score every site of every window, ``batch_size`` windows at a time, and keep the mode.

    ``chunk`` sites of a window are held at once, which changes no number; ``None`` for all.

    A ``team`` shares the windows. Window ``w`` is of ``kinds[w % len(kinds)]``, and each kind is
    told apart as ``kinds/<kind>/...``. A model that computes a part of the sites says so as
    ``length/...``; the layers that sites ran through are ``act/...`` of a policy that halts, and
    ``depth/...`` of any other that does not run all of them. Sites that were not computed ran
    through none. Where halting and heads stop tokens, ``exit/...`` is what heads stopped, told at
    fixed length alone.
    """
    own = slice(team.rank, None, team.size)
    sides = (torch.split(x_WN[own], batch_size) for x_WN in (inputs_WN, targets_WN))
    windows = [pair for pair in zip(*sides, strict=True) if len(pair[0])]
    parts = team.gather(_score(model, windows, chunk, autocast))
    score, n_sites = _together(parts, len(targets_WN)), targets_WN.shape[1]
    row = Row(*score.row_WC.unbind(1))
    n_late = n_sites - n_sites // 2
    metrics = {"context/late_loss_nats": float(row.late_nats.mean()) / n_late}
    if score.halts:
        metrics |= depth_metrics(score.n_tokens_at_layer, float(row.remainder.sum()))
        metrics |= _sure_metrics(score.n_sure_at_layer, len(targets_WN) * n_sites)
    elif score.n_tokens_at_layer and (score.bins or _is_cut_short(score, model)):
        metrics |= depth_metrics(score.n_tokens_at_layer, None)
    if score.bins:
        metrics |= _length_metrics(row, n_sites, score.bins)
    for place, kind in enumerate(kinds[: len(targets_WN)]):
        of_kind = Row(*score.row_WC[place :: len(kinds)].unbind(1))
        metrics |= _kind_metrics(of_kind, n_sites, f"kinds/{kind}", bool(score.bins))
    return Evaluation(float(row.loss_nats.mean()) / n_sites, metrics)


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

    @property
    def loss_nats(self) -> Tensor:
        return self.inside_nats + self.beyond_nats


class _Score(NamedTuple):
    """What was seen, on the host."""

    row_WC: Tensor
    n_tokens_at_layer: list[int]
    """How many tokens ran through so many layers, from 0; empty where the model says nothing."""
    bins: list[int]
    """Lengths in sites that were chosen from; empty where the length is fixed."""
    halts: bool
    n_sure_at_layer: list[int]
    """How many of the tokens a head stopped; empty where none is asked beside halting."""


def _together(parts: Sequence[_Score], n_windows: int) -> _Score:
    """Return what a team saw, the windows in their order."""
    row_WC = torch.empty(n_windows, len(Row._fields), dtype=torch.float64)
    for rank, part in enumerate(parts):
        row_WC[rank :: len(parts)] = part.row_WC
    counts = zip_longest(*(part.n_tokens_at_layer for part in parts), fillvalue=0)
    sure = zip_longest(*(part.n_sure_at_layer for part in parts), fillvalue=0)
    first = parts[0]  # it has a window, if anybody has
    return _Score(row_WC, [*map(sum, counts)], first.bins, first.halts, [*map(sum, sure)])


@torch.no_grad()
def _score(
    model: nn.Module,
    windows: Sequence[Part],
    chunk: int | None,
    autocast: torch.autocast,
) -> _Score:
    if not windows:  # a team with more processes than windows
        return _Score(torch.empty(0, len(Row._fields), dtype=torch.float64), [], [], False, [])
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    rows: list[Tensor] = []
    layers: list[Tensor] = []
    sure: list[Tensor] = []
    for inputs, targets in windows:
        with autocast:
            prediction, loss_BN = _losses(model, inputs.to(device), targets.to(device), chunk)
        rows.append(torch.stack(_row(prediction, loss_BN), dim=1))
        layers_BN = prediction.layers_BN
        if layers_BN is not None:
            layers.append(layers_BN.flatten().long())
            if prediction.sure_BN is not None:
                sure.append(layers_BN.where(prediction.sure_BN, 0).flatten().long())
    model.train(was_training)
    return _on_host(torch.cat(rows), layers, sure, prediction, loss_BN.shape[1])


def _losses(
    model: nn.Module, inputs_BN: Tensor, targets_BN: Tensor, chunk: int | None
) -> tuple[Prediction, Tensor]:
    """Return what is said of rows, whose logits are of the last chunk alone, and their losses."""
    layers, remainders, sure, losses = [], [], [], []
    targets = torch.split(targets_BN, chunk or targets_BN.shape[1], dim=1)
    for said, targets_Bn in zip(in_chunks(model, inputs_BN, chunk), targets, strict=True):
        losses.append(token_loss_nats(said, targets_Bn).double())
        layers += [] if said.layers_BN is None else [said.layers_BN]
        remainders += [] if said.remainder_BN is None else [said.remainder_BN]
        sure += [] if said.sure_BN is None else [said.sure_BN]
    whole = said._replace(
        layers_BN=torch.cat(layers, dim=1) if layers else None,
        remainder_BN=torch.cat(remainders, dim=1) if remainders else None,
        sure_BN=torch.cat(sure, dim=1) if sure else None,
    )
    return whole, torch.cat(losses, dim=1)


def _on_host(
    row_WC: Tensor,
    layers: Sequence[Tensor],
    sure: Sequence[Tensor],
    prediction: Prediction,
    n_sites: int,
) -> _Score:
    """Copy what was seen from the device, all at once: each copy waits for it."""
    nothing = row_WC.new_empty(0)
    parts = [row_WC.flatten(), nothing, nothing, nothing]
    if layers:
        parts[1] = torch.cat(list(layers)).bincount().double()
    if sure:  # with as many layers as there are, whoever was sure
        parts[3] = torch.cat(list(sure)).bincount(minlength=len(parts[1])).double()
    if prediction.lengths is not None:
        parts[2] = prediction.lengths.bins_K.clamp(max=n_sites).double()
    flat = torch.cat(parts).cpu()
    row_F, count_L, bins_K, sure_L = torch.split(flat, [len(part) for part in parts])
    return _Score(
        row_F.view(row_WC.shape),
        count_L.long().tolist(),
        sorted(set(bins_K.long().tolist())),
        prediction.remainder_BN is not None,
        sure_L.long().tolist(),
    )


def _row(prediction: Prediction, loss_BN: Tensor) -> Row:
    n_rows, n_sites = loss_BN.shape
    computed_B = loss_BN.new_full((n_rows,), n_sites)
    remainder_B = loss_BN.new_zeros(n_rows)
    if prediction.lengths is not None:
        computed_B = prediction.lengths.computed_B.double()
    if prediction.remainder_BN is not None:
        remainder_B = prediction.remainder_BN.double().sum(1)
    is_inside_BN = torch.arange(n_sites, device=loss_BN.device) < computed_B[:, None]
    return Row(
        loss_BN.where(is_inside_BN, 0).sum(1),
        loss_BN.where(~is_inside_BN, 0).sum(1),
        loss_BN[:, n_sites // 2 :].sum(1),
        computed_B,
        remainder_B,
    )


def _is_cut_short(score: _Score, model: nn.Module) -> bool:
    """Whether a token did not run through all blocks of the model, so far as it shows them."""
    counts, n_blocks = score.n_tokens_at_layer, len(getattr(model, "blocks", ()))
    return counts[n_blocks:] != [sum(counts)]


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


def _sure_metrics(counts: Sequence[int], n_tokens: int) -> dict[str, float]:
    """Return which share of the tokens heads stopped, in all and at each layer.

    ``counts[l]`` were stopped at layer ``l``; those that no head stopped are counted at 0.
    """
    if not counts:
        return {}
    shares = {
        f"exit/share_at_layer_{depth}": counts[depth] / n_tokens for depth in range(1, len(counts))
    }
    return {"exit/share_sure": sum(shares.values()), **shares}


def _length_metrics(row: Row, n_sites: int, bins: Sequence[int]) -> dict[str, float]:
    n_inside = float(row.computed.sum())
    n_beyond = len(row.computed) * n_sites - n_inside
    metrics = {
        "length/avg_length": float(row.computed.mean()),
        "length/share_beyond": n_beyond / (n_inside + n_beyond),
        "length/loss_inside_nats": float(row.inside_nats.sum()) / n_inside,
        **{f"length/share_at_{n}": float((row.computed == n).double().mean()) for n in bins},
    }
    if n_beyond:
        metrics["length/loss_beyond_nats"] = float(row.beyond_nats.sum()) / n_beyond
    return metrics


def _kind_metrics(row: Row, n_sites: int, name: str, is_learned: bool) -> dict[str, float]:
    loss_nats = row.loss_nats.mean() / n_sites
    metrics = {f"{name}/loss_nats": float(loss_nats), f"{name}/ppl": float(loss_nats.exp())}
    if is_learned:
        metrics[f"{name}/avg_length"] = float(row.computed.mean())
    return metrics
