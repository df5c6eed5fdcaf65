"""Learned sequence length: how many sites of a row are worth computing.

Letters: B batch, N sites, D width, V vocabulary, K bins, R rows of one length, F features.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from bkray.nn.beyond import LAGS, Answer, Copy, Repeat, Shallow, pooled
from bkray.nn.bins import passes
from bkray.nn.depth import Sparsity
from bkray.nn.lm import LanguageModel, Lengths, Prediction
from bkray.nn.moe import Routing

Scope = Literal["prefix", "full"]
Grouping = Literal["by_length", "per_sequence", "batch_maximum"]

PASS_SITES = 128
"""What one more pass through the layers costs beyond its sites, in sites: 1.9 ms against 13.5 us a
site at d=64, 2.9 ms against 26 us at d=128 (docs/log.md)."""

Rows = Tensor | slice


class LengthPredictor(nn.Module):
    """Reads a row's embedded input and says how good each length bin would be.

    It sees the mean of the sites and how alike they are 1 to ``LAGS`` sites apart. With scope
    ``prefix`` these are the sites of the shortest bin, which are computed in any case; ``full``
    takes them all, and with them up to ``log2(K)`` bits of the future.
    """

    def __init__(self, d_model: int, bins: Sequence[int], scope: Scope = "prefix") -> None:
        super().__init__()
        self.bins, self.scope = tuple(bins), scope
        self.up = nn.Linear(d_model + LAGS, max(d_model // 4, 4))
        self.down = nn.Linear(self.up.out_features, len(bins))

    def forward(self, embedded_BND: Tensor) -> Tensor:
        """Return the logit of every bin, (B, K); the embedding itself learns nothing from it."""
        seen = self.bins[0] if self.scope == "prefix" else embedded_BND.shape[1]
        features_BF = pooled(embedded_BND[:, :seen].detach())
        logit_BK: Tensor = self.down(torch.relu(self.up(features_BF)))
        return logit_BK


class LearnedLength(nn.Module):
    """A language model that computes as many sites of a row as the row is worth.

    In evaluation every row is cut at the most probable bin; the sites behind the cut are answered
    by ``beyond``. In training all sites are computed, since one causal pass gives the loss of
    every bin; a share ``train_cut`` of the rows, drawn at random, is cut as in evaluation.

    Rows of about one length are computed together (``by_length``), or each alone
    (``per_sequence``): the numbers are the same. ``batch_maximum`` cuts all rows at the longest of
    their lengths, which makes a row depend on its batch: never compare by it.
    """

    def __init__(
        self,
        model: LanguageModel,
        predictor: LengthPredictor,
        beyond: Repeat | Shallow | Copy,
        *,
        grouping: Grouping = "by_length",
        train_cut: float = 0.0,
    ) -> None:
        super().__init__()
        self.model, self.predictor, self.beyond = model, predictor, beyond
        self.grouping, self.train_cut = grouping, train_cut

    @property
    def causal(self) -> bool:
        """Whether no length depends on what lies behind it."""
        return self.predictor.scope == "prefix"

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers, first to last."""
        return self.model.blocks

    def forward(self, tokens_BN: Tensor) -> Prediction:
        """Return logits for all sites; behind the longest bin none is ever computed."""
        embedded_BND = self.model.embed(tokens_BN)
        logit_BK = self.predictor(embedded_BND)
        bins_K = torch.tensor(self.predictor.bins, device=tokens_BN.device)
        computed_B = self._computed(logit_BK, bins_K.clamp(max=tokens_BN.shape[1]))
        whole = together(
            [
                (rows_R, self._cut(tokens_BN[rows_R], embedded_BND[rows_R], lengths))
                for rows_R, lengths in self._groups(computed_B, tokens_BN.shape[1])
            ]
        )
        beyond = None
        if self.training and not isinstance(self.beyond, Repeat):
            beyond = self._behind(tokens_BN, embedded_BND, self.predictor.bins[0])
        return whole._replace(lengths=Lengths(logit_BK, bins_K, computed_B, beyond))

    def _computed(self, logit_BK: Tensor, bins_K: Tensor) -> Tensor:
        """Return how many sites of each row to compute."""
        longest_B = bins_K[-1].expand(len(logit_BK))
        if self.training and self.train_cut == 0:
            return longest_B
        chosen_B = bins_K[logit_BK.argmax(1)]
        if self.grouping == "batch_maximum":
            chosen_B = chosen_B.max().expand_as(chosen_B)
        if not self.training:
            return chosen_B
        is_cut_B = torch.rand(chosen_B.shape, device=chosen_B.device) < self.train_cut
        return torch.where(is_cut_B, chosen_B, longest_B)

    def _groups(self, computed_B: Tensor, n_sites: int) -> Iterator[tuple[Rows, list[int]]]:
        """Yield rows that are computed together, and at how many sites each of them is cut."""
        if self.training and self.train_cut == 0:  # known without asking the device
            yield slice(None), [min(self.predictor.bins[-1], n_sites)]
            return
        lengths = computed_B.tolist()
        if self.grouping == "per_sequence":
            yield from ((slice(row, row + 1), [length]) for row, length in enumerate(lengths))
        elif len(set(lengths)) == 1:
            yield slice(None), lengths[:1]
        else:
            # In training a row never runs further than its cut: routing and gradients would tell.
            price = 0 if self.training else PASS_SITES
            for rows in passes(lengths, price):
                cuts = [lengths[row] for row in rows]
                yield torch.tensor(rows, device=computed_B.device), cuts

    def _cut(self, tokens_RN: Tensor, embedded_RND: Tensor, lengths: Sequence[int]) -> Prediction:
        """Return what the layers say of each row's first sites, and the cheap answer for the
        others; ``lengths`` is one for all rows, or one for each."""
        if len(set(lengths)) > 1:
            return self._cut_unevenly(tokens_RN, embedded_RND, lengths)
        n_computed = lengths[0]
        said = self.model.run(embedded_RND[:, :n_computed])
        n_behind = tokens_RN.shape[1] - n_computed
        if n_behind == 0:
            return said
        if isinstance(self.beyond, Repeat):
            behind_RNV = said.logits_BNV[:, -1:].detach().expand(-1, n_behind, -1)
        else:
            behind_RNV = self._behind(tokens_RN, embedded_RND, n_computed).logits()
        return said._replace(
            logits_BNV=torch.cat([said.logits_BNV, behind_RNV.to(said.logits_BNV.dtype)], dim=1),
            layers_BN=None if said.layers_BN is None else pad(said.layers_BN, (0, n_behind)),
            remainder_BN=(
                None if said.remainder_BN is None else pad(said.remainder_BN, (0, n_behind))
            ),
            sure_BN=None if said.sure_BN is None else pad(said.sure_BN, (0, n_behind)),
            exits=tuple(  # all heads are spared there; the answer learns as the last head's alone
                torch.cat([exit_RNV, behind_RNV.detach().to(exit_RNV.dtype)], dim=1)
                for exit_RNV in said.exits
            ),
            sparsity=(
                None
                if said.sparsity is None
                else Sparsity(*(x_R * n_computed / tokens_RN.shape[1] for x_R in said.sparsity))
            ),
        )

    def _cut_unevenly(
        self, tokens_RN: Tensor, embedded_RND: Tensor, lengths: Sequence[int]
    ) -> Prediction:
        """Do the same in evaluation for rows that run to the longest of their lengths: no site
        hears of a later one, so what lies behind a row's own cut can be left out."""
        least, n_sites = min(lengths), tokens_RN.shape[1]
        said = self.model.run(embedded_RND[:, : max(lengths)])
        length_R = torch.tensor(lengths, device=tokens_RN.device)
        is_inside_RN = torch.arange(n_sites, device=length_R.device) < length_R[:, None]
        if isinstance(self.beyond, Repeat):
            last_RNV = said.logits_BNV[torch.arange(len(length_R)), length_R - 1][:, None]
            behind_RNV = last_RNV.expand(-1, n_sites - least, -1)
        else:
            behind_RNV = self._behind(tokens_RN, embedded_RND, least).logits()
        n_behind = n_sites - max(lengths)
        computed_RNV = pad(said.logits_BNV[:, least:], (0, 0, 0, n_behind))
        behind_RNV = torch.where(
            is_inside_RN[:, least:, None], computed_RNV, behind_RNV.to(computed_RNV.dtype)
        )

        def inside(x_RN: Tensor | None) -> Tensor | None:
            if x_RN is None:
                return None
            return pad(x_RN, (0, n_behind)).where(is_inside_RN, x_RN.new_zeros(()))

        return said._replace(
            logits_BNV=torch.cat([said.logits_BNV[:, :least], behind_RNV], dim=1),
            layers_BN=inside(said.layers_BN),
            remainder_BN=inside(said.remainder_BN),
            sure_BN=inside(said.sure_BN),
        )

    def _behind(self, tokens_BN: Tensor, embedded_BND: Tensor, first: int) -> Answer:
        """Return the cheap answers from site ``first`` on; all rows share the shortest bin."""
        start_BF = pooled(embedded_BND[:, : self.predictor.bins[0]].detach())
        answer: Answer = self.beyond(tokens_BN, embedded_BND, start_BF, self.model.read, first)
        return answer


def together(parts: Sequence[tuple[Rows, Prediction]]) -> Prediction:
    """Return one prediction of all rows, in their order."""
    if len(parts) == 1:
        return parts[0][1]
    said = [part for _, part in parts]
    n_rows = sum(len(one.logits_BNV) for one in said)

    def whole(of_parts: Sequence[Tensor]) -> Tensor:
        put = of_parts[0].new_empty((n_rows, *of_parts[0].shape[1:]))
        for (rows_R, _), part in zip(parts, of_parts, strict=True):
            put[rows_R] = part
        return put

    def if_any(of_parts: Sequence[Tensor | None]) -> Tensor | None:
        there = [part for part in of_parts if part is not None]
        return whole(there) if there else None

    sparse = [one.sparsity for one in said if one.sparsity is not None]
    return Prediction(
        whole([one.logits_BNV for one in said]),
        if_any([one.layers_BN for one in said]),
        if_any([one.remainder_BN for one in said]),
        tuple(
            Routing(sum(r.count_E for r in layer), sum(r.probability_E for r in layer))
            for layer in zip(*(one.routing for one in said), strict=True)
        ),
        exits=tuple(whole(exit) for exit in zip(*(one.exits for one in said), strict=True)),
        sparsity=Sparsity(*(whole(x) for x in zip(*sparse, strict=True))) if sparse else None,
        sure_BN=if_any([one.sure_BN for one in said]),
    )
