"""Early exit: a token leaves at the first layer whose head is sure enough.

Letters: B batch, N sites of the whole sequence, M sites still running, D width, V vocabulary,
T tokens still running, padding left out.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bkray.nn.block import Block
from bkray.nn.depth import Deep, Running, Stage, alone, unused
from bkray.nn.moe import Routing
from bkray.ops.sureness import Rule, sureness

Read = Callable[[Tensor], Tensor]
"""States (..., D) to logits (..., V)."""


class ExitDepth(nn.Module):
    """A head behind every layer says what comes next; a token leaves where it is sure enough.

    In training every token runs through every layer, so that every head learns from all of them.
    In evaluation a token leaves, its answer given, at the first layer where its largest
    probability is at least ``threshold`` (``confidence``), or the entropy of its answer, in nats,
    at most that (``entropy``). Those that left are gathered out as in ACT: deeper layers and their
    heads see the others alone. Rule and threshold may be changed at any time.

    ``heads`` are the early ones, one per layer but the last; without any the model's own norm and
    head read every layer.
    """

    reads = streams = True

    def __init__(self, rule: Rule, threshold: float, heads: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.rule, self.threshold = rule, threshold
        self.heads = nn.ModuleList(heads)

    def forward(
        self, blocks: Sequence[Block], hidden_BND: Tensor, position_BN: Tensor, read: Read
    ) -> Deep:
        """Return the states and logits with which the tokens left; ``read`` is the last head."""
        stages = [alone(block) for block in blocks]
        return self.through(stages, hidden_BND, position_BN, read)

    def through(
        self, stages: Sequence[Stage], hidden_BND: Tensor, position_BN: Tensor, read: Read
    ) -> Deep:
        """Do the same with stages in place of layers: a head behind each of them."""
        early = self.readers(len(stages) - 1, read)
        run = run_all if self.training else self._run_until_sure
        return run(stages, [*early, read], hidden_BND, position_BN)

    def readers(self, n_early: int, read: Read) -> list[Read]:
        """Return the early heads, or ``read`` in their place where there are none."""
        return list(self.heads) or [read] * n_early

    def _run_until_sure(
        self,
        stages: Sequence[Stage],
        heads: Sequence[Read],
        hidden_BND: Tensor,
        position_BN: Tensor,
    ) -> Deep:
        run, layers_BN = Running(hidden_BND, position_BN), torch.zeros_like(position_BN)
        routing: list[Routing] = []
        for depth, (stage, head) in enumerate(zip(stages, heads, strict=True), start=1):
            deep = stage.run(run.hidden_BMD, run.position_BM, run.there_BM)
            run = run._replace(hidden_BMD=deep.hidden_BND)
            layers_BN = run.add_to(layers_BN, deep.layers_BN)
            routing += deep.routing
            state_TD = tokens_of(run)
            logits_TV = head(state_TD)
            if run.site_BM is None:
                at_exit_TD, said_TV = state_TD, logits_TV
            else:  # who goes on speaks again, deeper
                place_T = places_of(run, position_BN.shape[1])
                at_exit_TD = at_exit_TD.index_copy(0, place_T, state_TD)
                said_TV = said_TV.index_copy_(0, place_T, logits_TV)
            if depth == len(stages):
                break
            leaves_T = self.sure(logits_TV)
            if leaves_T.any():
                run = run.without(as_rows(leaves_T, run))
            if run.hidden_BMD.shape[1] == 0:
                routing += unused([block for rest in stages[depth:] for block in rest.blocks])
                break
        return Deep(
            at_exit_TD.view_as(hidden_BND),
            layers_BN,
            None,
            tuple(routing),
            logits_BNV=said_TV.view(*position_BN.shape, -1),
        )

    @torch.no_grad()
    def sure(self, logits_TV: Tensor) -> Tensor:
        """Return who may leave, (T,); nobody whose logits are NaN."""
        least = self.threshold if self.rule == "confidence" else -self.threshold
        return sureness(logits_TV, self.rule) >= least


def run_all(
    stages: Sequence[Stage], heads: Sequence[Read], hidden_BND: Tensor, position_BN: Tensor
) -> Deep:
    """Run every token through every stage, and let every head speak."""
    layers_BN, said = torch.zeros_like(position_BN), []
    routing: tuple[Routing, ...] = ()
    for stage, head in zip(stages, heads, strict=True):
        deep = stage.run(hidden_BND, position_BN, None)
        hidden_BND, layers_BN = deep.hidden_BND, layers_BN + deep.layers_BN
        routing += deep.routing
        said.append(head(hidden_BND))
    *exits, logits_BNV = said
    return Deep(hidden_BND, layers_BN, None, routing, logits_BNV, tuple(exits))


def tokens_of(run: Running) -> Tensor:
    """Return the states of the running tokens row by row, (T, D), padding left out."""
    if run.there_BM is None:
        return run.hidden_BMD.flatten(0, 1)
    return run.hidden_BMD[run.there_BM]


def places_of(run: Running, n_sites: int) -> Tensor:
    """Return where the running tokens stand among all tokens of the batch, (T,)."""
    site_BM = run.site_BM
    if site_BM is None:
        site_BM = torch.arange(n_sites, device=run.position_BM.device)
    first_B1 = n_sites * torch.arange(len(run.position_BM), device=site_BM.device)[:, None]
    place_BM = first_B1 + site_BM
    return place_BM.flatten() if run.there_BM is None else place_BM[run.there_BM]


def as_rows(said_T: Tensor, run: Running) -> Tensor:
    """Return what was said of the running tokens in their rows, (B, M); False in the padding."""
    if run.there_BM is None:
        return said_T.view_as(run.position_BM)
    return torch.zeros_like(run.there_BM).masked_scatter(run.there_BM, said_T)
