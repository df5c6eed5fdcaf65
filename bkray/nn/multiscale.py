"""Multi-scale: layers, or mixers alone, that run over groups of neighbours.

A site reads a group only from the group's last member on, which is what keeps this causal: site
``t`` reads group ``(t + 1) // S - 1``, and the first ``S - 1`` sites none. Groups are made of
places in the sequence at hand, so one shortened by stopped tokens has groups of those that run.

Letters: B batch, N sites, S sites per group, M = max(N // S, 1) groups, D width.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from bkray.nn.act import ActDepth, run_until_halted
from bkray.nn.block import Block
from bkray.nn.depth import Deep, DenseDepth, Stage, alone
from bkray.nn.exits import ExitDepth, Read
from bkray.nn.mixer import Mixer

PAIR = 2
"""Sites per group in the middle of an hourglass."""

N_STAGES = 3
"""Of an hourglass: the first block, the middle, the last block."""


class ScaledMixer(nn.Module):
    """A mixer over the means of ``scale`` neighbours: 1 / scale of the sites, so of its work."""

    def __init__(self, mixer: Mixer, scale: int) -> None:
        super().__init__()
        self.mixer, self.scale = mixer, scale
        self.causal = mixer.causal

    def forward(self, hidden_BND: Tensor, position_BN: Tensor) -> Tensor:
        mixed_BMD = self.mixer(
            means(hidden_BND, self.scale), last_members(position_BN, self.scale)
        )
        return read_back(mixed_BMD, hidden_BND.shape[1], self.scale)


class MultiscaleDepth(nn.Module):
    """An hourglass: the first and the last block over all sites, those between over pairs.

    The middle runs over the means of pairs under the policy ``within``, and what it adds to a
    pair is added to the sites that read it. With ``around``, tokens may leave or halt behind the
    first block and behind the middle; the pairs are then pairs of those who stayed. ACT acts at
    each scale where it is both within and around.

    ``layers_BN`` counts the blocks whose work a site gets: in the middle those of the pair that
    it reads, at half the price each, and none at the first site of a sequence. The clock is the
    truth. ACT's remainders, that of the site and that of the pair it reads, are added up.
    """

    def __init__(
        self,
        within: Callable[..., Deep] | None = None,
        around: ExitDepth | ActDepth | None = None,
    ) -> None:
        super().__init__()
        self.within = within if within is not None else DenseDepth()
        self.around = around

    @property
    def reads(self) -> bool:
        """Whether the policy needs the model's head."""
        return isinstance(self.around, ExitDepth)

    def forward(
        self,
        blocks: Sequence[Block],
        hidden_BND: Tensor,
        position_BN: Tensor,
        read: Read | None = None,
    ) -> Deep:
        first, *middle, last = blocks
        stages = [alone(first), Stage(middle, self.over_pairs), alone(last)]
        if self.around is None:
            return straight(stages, hidden_BND, position_BN)
        if isinstance(self.around, ActDepth):
            return run_until_halted(self.around.layers(stages), hidden_BND, position_BN)
        assert read is not None
        return self.around.through(stages, hidden_BND, position_BN, read)

    def over_pairs(
        self,
        blocks: Sequence[Block],
        hidden_BND: Tensor,
        position_BN: Tensor,
        there_BN: Tensor | None,
    ) -> Deep:
        """Return the states with what the blocks add to the pairs, read back by the sites."""
        n_sites = hidden_BND.shape[1]
        pair_BMD = means(hidden_BND, PAIR)
        # Padding lies behind a row's own tokens: the last member is there only if all are.
        there = () if there_BN is None else (last_members(there_BN, PAIR),)
        deep = self.within(blocks, pair_BMD, last_members(position_BN, PAIR), *there)
        return deep._replace(
            hidden_BND=hidden_BND + read_back(deep.hidden_BND - pair_BMD, n_sites, PAIR),
            layers_BN=read_back(deep.layers_BN, n_sites, PAIR),
            remainder_BN=(
                None if deep.remainder_BN is None else read_back(deep.remainder_BN, n_sites, PAIR)
            ),
        )


def straight(stages: Sequence[Stage], hidden_BND: Tensor, position_BN: Tensor) -> Deep:
    """Run every token through every stage; at most one of them has more to tell than layers."""
    whole = Deep(hidden_BND, torch.zeros_like(position_BN), None, ())
    for stage in stages:
        deep = stage.run(whole.hidden_BND, position_BN, None)
        whole = Deep(
            deep.hidden_BND,
            whole.layers_BN + deep.layers_BN,
            whole.remainder_BN if deep.remainder_BN is None else deep.remainder_BN,
            whole.routing + deep.routing,
            sparsity=whole.sparsity if deep.sparsity is None else deep.sparsity,
        )
    return whole


def means(hidden_BND: Tensor, scale: int) -> Tensor:
    """Return the mean of every whole group, (B, M, D).

    Fewer sites than one group make one that nobody reads: no layer ever sees an empty sequence.
    """
    n_groups = hidden_BND.shape[1] // scale
    if n_groups == 0:
        return pad(hidden_BND, (0, 0, 0, scale - hidden_BND.shape[1])).mean(1, keepdim=True)
    whole_BND = hidden_BND[:, : n_groups * scale]
    return whole_BND.reshape(len(hidden_BND), n_groups, scale, -1).mean(2)


def last_members(x_BN: Tensor, scale: int) -> Tensor:
    """Return what the last member of every whole group has, (B, M); 0 where there is no group."""
    if x_BN.shape[1] < scale:
        return torch.zeros_like(x_BN[:, :1])
    return x_BN[:, scale - 1 :: scale]


def read_back(group_BM: Tensor, n_sites: int, scale: int) -> Tensor:
    """Return at every site what its group has, (B, N) or (B, N, D); 0 where no group is whole."""
    spread = group_BM.repeat_interleave(scale, dim=1)
    front = torch.zeros_like(spread[:, : scale - 1])
    return torch.cat([front, spread], dim=1)[:, :n_sites]
