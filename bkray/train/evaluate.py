"""Loss on fixed windows, in evaluation mode, and how much of the model was run there.

Letters: W windows, B of them at once, N sites, V vocabulary, K bins of the length, L layers, C
numbers of a window.
"""

from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bkray.data.of_trial import UNSCORED
from bkray.nn.lm import Prediction
from bkray.train.chunked import in_chunks
from bkray.train.scored import Row, depth_metrics, kind_metrics, length_metrics, sure_metrics
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

    A site that is ``UNSCORED`` fills up a row behind its tokens: it counts nowhere.

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
    score = _together(parts, len(targets_WN))
    row = Row(*score.row_WC.unbind(1))
    metrics = {"context/late_loss_nats": row.late_loss_nats}
    if score.halts:
        metrics |= depth_metrics(score.n_tokens_at_layer, float(row.remainder.sum()))
        metrics |= sure_metrics(score.n_sure_at_layer, int(row.scored.sum()))
    elif score.n_tokens_at_layer and (score.bins or _is_cut_short(score, model)):
        metrics |= depth_metrics(score.n_tokens_at_layer, None)
    if score.bins:
        metrics |= length_metrics(row, score.bins)
    metrics |= dict(kind_metrics(score.row_WC, kinds, bool(score.bins)))
    return Evaluation(row.loss_nats, metrics)


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
        scored_BN = (targets != UNSCORED).to(device)
        with autocast:
            prediction, loss_BN = _losses(model, inputs.to(device), targets.to(device), chunk)
        rows.append(torch.stack(_row(prediction, loss_BN, scored_BN), dim=1))
        layers_BN = prediction.layers_BN
        if layers_BN is not None:
            layers.append((layers_BN + 1).where(scored_BN, 0).flatten().long())
            if prediction.sure_BN is not None:
                sure.append(layers_BN.where(prediction.sure_BN & scored_BN, 0).flatten().long())
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
    if layers:  # of those that are unscored, which lie at 0, nothing is said
        parts[1] = torch.cat(list(layers)).bincount()[1:].double()
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


def _row(prediction: Prediction, loss_BN: Tensor, scored_BN: Tensor) -> Row:
    n_rows, n_sites = loss_BN.shape
    computed_B = loss_BN.new_full((n_rows,), n_sites)
    remainder_B = loss_BN.new_zeros(n_rows)
    if prediction.lengths is not None:
        computed_B = prediction.lengths.computed_B.double()
    if prediction.remainder_BN is not None:
        remainder_B = prediction.remainder_BN.double().where(scored_BN, 0).sum(1)
    scored_B = scored_BN.sum(1).double()
    is_inside_BN = torch.arange(n_sites, device=loss_BN.device) < computed_B[:, None]
    return Row(
        loss_BN.where(is_inside_BN, 0).sum(1),
        loss_BN.where(~is_inside_BN, 0).sum(1),
        loss_BN[:, n_sites // 2 :].sum(1),
        computed_B.minimum(scored_B),
        remainder_B,
        scored_B,
        scored_BN[:, n_sites // 2 :].sum(1).double(),
    )


def _is_cut_short(score: _Score, model: nn.Module) -> bool:
    """Whether a token did not run through all blocks of the model, so far as it shows them."""
    counts, n_blocks = score.n_tokens_at_layer, len(getattr(model, "blocks", ()))
    return counts[n_blocks:] != [sum(counts)]
