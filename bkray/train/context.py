"""What context is worth: the same tokens with their past, without it, and with a false one.

Letters: W windows, B of them at once, N sites, T targets at the end of each window.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bkray.errors import ConfigError, DataError
from bkray.nn.lm import Carried, Prediction, check_streams
from bkray.stats import Interval, bootstrap_interval

TARGETS = 8
"""Sites at the end of each window that are scored: each has ``d`` true tokens before the first."""

ROUNDING_NATS = 1e-5
"""Differences below this are those of float32 in another order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Benefit:
    """What the tokens further back than ``distance`` are worth, in nats per token.

    Means over windows of the loss without the true ones, less the loss with them.
    """

    distance: int
    over_cut: Interval
    """Against no tokens at all there."""
    over_shuffled: Interval
    """Against the same tokens in another order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextBenefit:
    """A model's benefit from context, by distance in powers of two."""

    n_windows: int
    n_sites: int
    n_targets: int
    loss_nats: float
    """Of the targets, with all of their window."""
    level: float
    """Of each interval: all of them together hold at 95%."""
    benefits: tuple[Benefit, ...]

    @property
    def is_flat(self) -> bool:
        """Whether no distance is of any use to the model, so far as these windows tell."""
        return not any(
            is_benefit(interval)
            for one in self.benefits
            for interval in (one.over_cut, one.over_shuffled)
        )


def is_benefit(interval: Interval) -> bool:
    """Whether a difference is above 0, rounding aside; one window tells nothing."""
    return interval.low is not None and interval.low > ROUNDING_NATS


@torch.no_grad()
def context_benefit(
    model: nn.Module,
    inputs_WN: Tensor,
    targets_WN: Tensor,
    *,
    batch_size: int,
    autocast: torch.autocast,
    chunk: int | None = None,
) -> ContextBenefit:
    """Score the last targets of every window with what lies further back cut off, or shuffled.

    At distance ``d`` the first target keeps its own token and the ``d - 1`` before it, the next
    one more, and so on. A cut moves the targets to the start of the row, which a model with
    learned positions also notices; shuffling does not. The model is left in the mode it was in.

    Args:
        chunk: sites of a row held at once; ``None`` for whole rows.

    Raises:
        ConfigError: windows too short to have a past; a model that cannot take chunks.
        DataError: a loss is not finite.
    """
    n_windows, n_sites = inputs_WN.shape
    n_targets = min(TARGETS, n_sites // 2)
    if n_targets < 1:
        raise ConfigError(
            f"windows of {n_sites} sites have no past to be without: take longer ones"
        )
    if chunk is not None:
        check_streams(model)
    scorer = _Scorer(model, targets_WN[:, n_sites - n_targets :], batch_size, autocast, chunk)
    was_training = model.training
    model.eval()
    true_W = scorer.loss(inputs_WN)
    distances = list(_distances(n_sites - n_targets))
    level = 1 - 0.05 / (2 * len(distances))
    benefits = []
    for distance in distances:
        n_past = n_sites - n_targets + 1 - distance
        others = (inputs_WN[:, n_past:], shuffled(inputs_WN, n_past))
        over = [bootstrap_interval((scorer.loss(o) - true_W).tolist(), level) for o in others]
        benefits.append(Benefit(distance=distance, over_cut=over[0], over_shuffled=over[1]))
    model.train(was_training)
    return ContextBenefit(
        n_windows=n_windows,
        n_sites=n_sites,
        n_targets=n_targets,
        loss_nats=float(true_W.mean()),
        level=level,
        benefits=tuple(benefits),
    )


def shuffled(tokens_WN: Tensor, n_first: int) -> Tensor:
    """Return the rows with their first tokens in a random order of their own, always the same."""
    draw = torch.Generator().manual_seed(0)
    order_WM = torch.rand(len(tokens_WN), n_first, generator=draw).argsort(1)
    first_WM = tokens_WN[:, :n_first].gather(1, order_WM.to(tokens_WN.device))
    return torch.cat([first_WM, tokens_WN[:, n_first:]], dim=1)


def _distances(n_past: int) -> Iterator[int]:
    """Yield the powers of two below what the first target has."""
    distance = 1
    while distance <= n_past:
        yield distance
        distance *= 2


@dataclass(frozen=True, slots=True)
class _Scorer:
    """Tells the loss of the same targets behind different pasts."""

    model: nn.Module
    targets_WT: Tensor
    batch_size: int
    autocast: torch.autocast
    chunk: int | None

    def loss(self, inputs_WN: Tensor) -> Tensor:
        """Return the mean loss of each row's targets in nats, (W,) in float64, on the host."""
        device = next(self.model.parameters()).device
        rows = []
        pairs = zip(
            torch.split(inputs_WN, self.batch_size),
            torch.split(self.targets_WT, self.batch_size),
            strict=True,
        )
        for inputs_BN, targets_BT in pairs:
            with self.autocast:
                logits_BTV = self._last(inputs_BN.to(device), targets_BT.shape[1])
            flat = cross_entropy(
                logits_BTV.flatten(0, 1).double(),
                targets_BT.to(device).flatten(),
                reduction="none",
            )
            rows.append(flat.view(targets_BT.shape).mean(1))
        loss_W = torch.cat(rows).cpu()
        if not loss_W.isfinite().all():
            raise DataError(
                "a loss is not finite: such a model cannot be told what context is worth"
            )
        return loss_W

    def _last(self, inputs_BN: Tensor, n_last: int) -> Tensor:
        """Return the logits of the last sites."""
        if self.chunk is None:
            whole: Prediction = self.model(inputs_BN)
            return whole.logits_BNV[:, -n_last:]
        carried: Carried | None = Carried()
        for tokens in self._before(inputs_BN[:, :-n_last]):
            carried = self.model(tokens, carried, told=False).carried
        said: Prediction = self.model(inputs_BN[:, -n_last:], carried)
        return said.logits_BNV

    def _before(self, inputs_BN: Tensor) -> Sequence[Tensor]:
        return torch.split(inputs_BN, self.chunk or 1, dim=1) if inputs_BN.shape[1] else ()
