"""ACT and early exit in one: a token stops where halting says so, or a head is sure.

Letters: B batch, N sites of the whole sequence, M sites still running, D width, V vocabulary, T
tokens that are asked about, S tokens that left because a head was sure.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bkray.nn.act import ActDepth, Halted, run_until_halted
from bkray.nn.block import Block
from bkray.nn.depth import Deep, Running, alone
from bkray.nn.exits import ExitDepth, Read, as_rows, places_of


class ActExitDepth(nn.Module):
    """A token stops at the first layer where ``act`` halts it or a head of ``exits`` is sure.

    The head judges what the token would give if it stopped here: the weighted sum of its states
    with the remainder at this layer. Such a stop is one of ACT's, in weights, layers and
    compaction. The head's answer is the token's; those that halting stops are answered by the
    last head, so with nobody sure this is ACT.

    In training halting alone decides. Every early head reads every token as it would be had
    nobody run deeper than the head's layer: one that stopped before, as it stopped. So each
    head's loss is a mean over all tokens, and no head goes without, however few run deep.
    """

    reads = streams = True

    def __init__(self, act: ActDepth, exits: ExitDepth) -> None:
        super().__init__()
        self.act, self.exits = act, exits

    def forward(
        self, blocks: Sequence[Block], hidden_BND: Tensor, position_BN: Tensor, read: Read
    ) -> Deep:
        """Return states and logits with which the tokens stopped; ``read`` is the last head."""
        layers = self.act.layers([alone(block) for block in blocks])
        heads = self.exits.readers(len(layers) - 1, read)
        if self.training:
            taught = _Taught(heads)
            deep = run_until_halted(layers, hidden_BND, position_BN, behind=taught)
            nobody_ran = [head(deep.hidden_BND) for head in heads[len(taught.exits) :]]
            return deep._replace(exits=(*taught.exits, *nobody_ran))
        asked = _Asked(heads, self.exits)
        deep = run_until_halted(layers, hidden_BND, position_BN, behind=asked)
        return asked.answers(deep, read)


class _Taught:
    """Lets the head behind each layer speak of every token; nobody stops by it."""

    def __init__(self, heads: Sequence[Read]) -> None:
        self.heads = heads
        self.exits: list[Tensor] = []

    def __call__(self, run: Running, halted: Halted, sum_BND: Tensor | None) -> Halted:
        head = self.heads[len(self.exits)]
        self.exits.append(head(as_if_stopped(run, halted.hidden_BMD, sum_BND)))
        return halted


class _Asked:
    """Stops those of whom the head behind the layer is sure, and keeps what it said of them."""

    def __init__(self, heads: Sequence[Read], exits: ExitDepth) -> None:
        self.heads, self.exits = iter(heads), exits
        self.place_S: list[Tensor] = []
        self.said_SV: list[Tensor] = []

    def __call__(self, run: Running, halted: Halted, sum_BND: Tensor | None) -> Halted:
        goes_on_BM = ~halted.stops_BM
        if run.there_BM is not None:
            goes_on_BM = goes_on_BM & run.there_BM
        unhalted = run._replace(there_BM=goes_on_BM)
        state_BND = as_if_stopped(run, halted.hidden_BMD, sum_BND)
        place_T = places_of(unhalted, state_BND.shape[1])
        said_TV = next(self.heads)(state_BND.flatten(0, 1)[place_T])
        sure_T = self.exits.sure(said_TV)
        self.place_S.append(place_T[sure_T])
        self.said_SV.append(said_TV[sure_T])
        sure_BM = as_rows(sure_T, unhalted)
        assert run.c_BM is not None
        return halted._replace(
            stops_BM=halted.stops_BM | sure_BM,
            weight_BM=torch.where(sure_BM, 1 - run.c_BM, halted.weight_BM),
        )

    def answers(self, deep: Deep, read: Read) -> Deep:
        """Return the pass with everybody's logits; ``read`` answers for those who halted."""
        sure_F = torch.zeros_like(deep.layers_BN, dtype=torch.bool).flatten()
        sure_F[torch.cat(self.place_S)] = True
        rest = (~sure_F).nonzero().squeeze(1)
        said_FV = torch.cat([*self.said_SV, read(deep.hidden_BND.flatten(0, 1)[rest])])
        logits_FV = torch.empty_like(said_FV).index_copy_(
            0, torch.cat([*self.place_S, rest]), said_FV
        )
        shape = deep.layers_BN.shape
        return deep._replace(logits_BNV=logits_FV.view(*shape, -1), sure_BN=sure_F.view(shape))


def as_if_stopped(run: Running, hidden_BMD: Tensor, sum_BND: Tensor | None) -> Tensor:
    """Return what every token gives if the running ones stop at this layer, (B, N, D)."""
    assert run.c_BM is not None
    part_BMD = (1 - run.c_BM)[..., None] * hidden_BMD
    return part_BMD if sum_BND is None else run.add_to(sum_BND, part_BMD)
