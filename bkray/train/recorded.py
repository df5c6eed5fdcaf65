"""Passes that record what every length would have given.

Letters: E windows, B of them at once, N sites, K lengths.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bkray.errors import DataError
from bkray.nn.beyond import Repeat
from bkray.nn.length import LearnedLength
from bkray.nn.lm import LanguageModel, Prediction
from bkray.ops.length import repeated_loss_table
from bkray.train.lengths import table
from bkray.train.step import Part, token_loss_nats

N_CANDIDATES = 16
"""Lengths that bins are chosen from: multiples of a sixteenth of the longest."""


class Windows(NamedTuple):
    """What is scored, ``batch_size`` windows at a time."""

    inputs_EN: Tensor
    targets_EN: Tensor
    batch_size: int
    autocast: torch.autocast

    def parts(self, device: torch.device) -> Iterator[Part]:
        """Yield inputs and targets of one batch after the other."""
        batches = zip(
            torch.split(self.inputs_EN, self.batch_size),
            torch.split(self.targets_EN, self.batch_size),
            strict=True,
        )
        yield from ((inputs.to(device), targets.to(device)) for inputs, targets in batches)


class Cuts(NamedTuple):
    """The loss of every window cut at every length, from one pass that cut nothing."""

    table_EK: Tensor
    """Mean over all sites, nats, on the host in float64."""
    lengths: tuple[int, ...]
    """Sites, growing; the last column is uncut."""
    own_bins: tuple[int, ...]
    """Of a learned length; empty where it is fixed."""
    chosen_E: Tensor | None
    """Column that the predictor chooses; ``None`` where the length is fixed."""
    avg_layers: float
    """Run by a token, nothing cut."""


def candidates_of(model: LanguageModel | LearnedLength, n_seq: int) -> tuple[int, ...]:
    """Return the lengths that bins are chosen from, in sites.

    None is shorter than what the predictor of a learned length reads, its shortest bin.
    """
    fewest = model.predictor.bins[0] if isinstance(model, LearnedLength) else 1
    multiples = {n_seq * i // N_CANDIDATES for i in range(1, N_CANDIDATES + 1)}
    return tuple(sorted(n for n in multiples if n >= fewest))


def beyond_of(model: LanguageModel | LearnedLength) -> str:
    """Return the name of what answers behind a cut; ``repeat`` where the length is fixed."""
    policy = model.beyond if isinstance(model, LearnedLength) else Repeat()
    return type(policy).__name__.lower()


def cut_losses(
    model: LanguageModel | LearnedLength, windows: Windows, candidates: Sequence[int]
) -> Cuts:
    """Return the loss of every window cut at the candidates and at the model's own bins.

    Raises:
        DataError: a loss is not finite.
    """
    own_bins = model.predictor.bins if isinstance(model, LearnedLength) else ()
    lengths = tuple(sorted({*candidates, *own_bins}))
    device = model_device(model)
    lengths_K = torch.tensor(lengths, device=device)
    tables, chosen, layers = [], [], []
    with _telling_all_lengths(model):
        for inputs_BN, targets_BN in windows.parts(device):
            with windows.autocast:
                said: Prediction = model(inputs_BN)
            tables.append(_cut_table(said, targets_BN, lengths_K))
            chosen += [] if said.lengths is None else [said.lengths.logit_BK.argmax(1)]
            assert said.layers_BN is not None
            layers.append(said.layers_BN.double().flatten())
    column_of_bin_K = torch.tensor([lengths.index(n) for n in own_bins])
    return Cuts(
        finite(torch.cat(tables).cpu()),
        lengths,
        own_bins,
        column_of_bin_K[torch.cat(chosen).cpu()] if chosen else None,
        float(torch.cat(layers).mean()),
    )


def _cut_table(said: Prediction, targets_BN: Tensor, lengths_K: Tensor) -> Tensor:
    loss_BN = token_loss_nats(said, targets_BN).double()
    n_sites = targets_BN.shape[1]
    if said.lengths is not None and said.lengths.beyond is not None:
        asked = said.lengths._replace(bins_K=lengths_K)
        return table(said, asked, loss_BN, targets_BN) / n_sites
    precise = torch.promote_types(said.logits_BNV.dtype, torch.float32)
    logits_BNV = said.logits_BNV.to(precise)
    return repeated_loss_table(loss_BN, logits_BNV, targets_BN, lengths_K) / n_sites


@contextmanager
def recording(model: nn.Module, told: nn.Module | None = None) -> Iterator[None]:
    """Evaluate without gradients, but let ``told`` answer as in training, none of its parts.

    So a learned length tells of all lengths and an early exit of all heads, and no dropout acts.
    """
    was_training = model.training
    model.eval()
    if told is not None:
        told.training = True
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@contextmanager
def _telling_all_lengths(model: LanguageModel | LearnedLength) -> Iterator[None]:
    if not isinstance(model, LearnedLength):
        with recording(model):
            yield
        return
    train_cut, model.train_cut = model.train_cut, 0.0  # else rows drawn at random are cut
    try:
        with recording(model, told=model):
            yield
    finally:
        model.train_cut = train_cut


def model_device(model: nn.Module) -> torch.device:
    """Return where the model computes."""
    return next(model.parameters()).device


def finite(loss: Tensor) -> Tensor:
    """Return losses in nats as they are.

    Raises:
        DataError: one of them is not finite.
    """
    if not loss.isfinite().all():
        raise DataError(
            "the checkpoint's loss is not finite on the validation windows: nothing to sweep; "
            "bkray why says what broke first"
        )
    return loss
