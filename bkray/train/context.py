"""What context is worth: the same tokens with their past, without it, and with a false one.

Letters: W windows, B of them at once, N sites, T targets at the end of each window.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bkray.data.of_trial import windows
from bkray.data.recall import answer_windows
from bkray.data.shards import Shards
from bkray.errors import ConfigError, DataError
from bkray.nn.lm import Carried, Prediction, check_streams
from bkray.rungs import rows_at
from bkray.train.run import Run
from bkray.train.worth import Worth, windows_needed, worths

TARGETS = 8
"""Sites at the end of each window that are scored: each has ``d`` true tokens before the first."""

CHUNK = 4096
"""Sites of longer windows held at once, unless the trial has chunks of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Benefit:
    """What the tokens further back than ``distance`` are worth."""

    distance: int
    over_cut: Worth
    """Against no tokens at all there."""
    over_shuffled: Worth
    """Against the same tokens in another order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextBenefit:
    """A model's benefit from context, by distance in powers of two."""

    n_windows: int
    n_sites: int
    n_targets: int
    loss_nats: float
    """Of the targets, with all of their window."""
    benefits: tuple[Benefit, ...]

    @property
    def n_windows_needed(self) -> int:
        """Fewer windows can never say ``benefit``, however large it is."""
        return windows_needed(2 * len(self.benefits))

    @property
    def verdict(self) -> Literal["benefit", "flat", "undecided"]:
        """Whether any distance is of use to the model, so far as these windows tell."""
        if self.n_windows < self.n_windows_needed:
            return "undecided"
        shown = (w for one in self.benefits for w in (one.over_cut, one.over_shuffled))
        return "benefit" if any(worth.is_benefit for worth in shown) else "flat"


def trial_benefit(
    trial: Run, shards: Shards, split: str, n_windows: int
) -> dict[str, ContextBenefit]:
    """Return what context is worth to a trial's model, as many rows at once as in training.

    On the corpus ``recall`` the answers alone are scored, and each kind for itself, by its name;
    all else has one entry, without a name.

    Raises:
        ConfigError: as ``context_benefit``; no window asked for.
        DataError: a loss is not finite, the corpus has no such split.
    """
    if n_windows < 1:
        raise ConfigError(f"--windows must be at least 1, got {n_windows}")
    config, n_seq = trial.config, trial.config.model.n_seq
    if config.data.corpus == "recall" and shards.segment is not None:
        tokens, n_targets = shards.tokens(split), 1
        sides = answer_windows(
            tokens, n_seq, n_windows, segment=shards.segment, kinds=shards.kinds
        )
    else:
        n_targets, sides = TARGETS, {"": windows(shards, split, n_seq, n_windows)}
    return {
        kind: context_benefit(
            trial.model,
            *pair,
            batch_size=rows_at(config, n_seq)[1],
            autocast=trial.autocast,
            chunk=config.train.chunk or (CHUNK if n_seq > CHUNK else None),
            n_targets=n_targets,
        )
        for kind, pair in sides.items()
    }


@torch.no_grad()
def context_benefit(
    model: nn.Module,
    inputs_WN: Tensor,
    targets_WN: Tensor,
    *,
    batch_size: int,
    autocast: torch.autocast,
    chunk: int | None = None,
    n_targets: int = TARGETS,
) -> ContextBenefit:
    """Score the last targets of every window with what lies further back cut off, or shuffled.

    At distance ``d`` the first target keeps its own token and the ``d - 1`` before it, the next
    one more, and so on. A cut moves the targets to the start of the row, which a model with
    learned positions also notices; shuffling does not. The model is left in the mode it was in.

    Args:
        chunk: sites of a row held at once; ``None`` for whole rows.
        n_targets: at most half of the sites are scored.

    Raises:
        ConfigError: windows too short to have a past; a model that cannot take chunks.
        DataError: a loss is not finite.
    """
    n_windows, n_sites = inputs_WN.shape
    n_targets = min(n_targets, n_sites // 2)
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
    differences = []
    for distance in distances:
        n_past = n_sites - n_targets + 1 - distance
        others = (inputs_WN[:, n_past:], shuffled(inputs_WN, n_past))
        differences += [(scorer.loss(other) - true_W).tolist() for other in others]
    model.train(was_training)
    found = worths(differences)
    pairs = zip(distances, found[::2], found[1::2], strict=True)
    return ContextBenefit(
        n_windows=n_windows,
        n_sites=n_sites,
        n_targets=n_targets,
        loss_nats=float(true_W.mean()),
        benefits=tuple(
            Benefit(distance=distance, over_cut=cut, over_shuffled=other)
            for distance, cut, other in pairs
        ),
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
