"""One optimizer step.

Letters: B batch, N sites, V vocabulary, L layers with experts, E experts, K blocks, C numbers.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from bkray.config import ModelConfig
from bkray.nn.lm import Prediction
from bkray.train.chunked import backward_in_chunks
from bkray.train.guard import Guard
from bkray.train.lengths import length_losses
from bkray.train.team import ALONE, Team
from bkray.train.watch import Blocks

Numbers = dict[str, Tensor]
"""Scalars on the device, not yet copied to the host."""

Part = tuple[Tensor, Tensor]
"""Inputs and targets of one accumulation round: tokens, each (B, N); or sequences (B, L, D) and
their classes (B,)."""


class Step(NamedTuple):
    """What one step said, all of it on the device.

    ``numbers`` has the means over the whole batch, ``grad_norm`` before clipping and ``masked``,
    1 where the update was withheld; ``block_norms_K`` each block's share of the norm.
    """

    numbers: Numbers
    load_LE: Tensor | None
    block_norms_K: Tensor


class Tally(Protocol):
    """Adds up what is said of the rows of a step, part by part; one for each step."""

    numbers: Numbers
    """Means over the rows, ``loss_nats`` among them."""
    load_LE: Tensor | None
    """Share of tokens that each expert had in the step before; ``None`` before the first one, and
    without experts."""
    count_LE: Tensor | None
    """Tokens that each expert has in this step."""

    def expect(self, parts: Sequence[Part]) -> None:
        """Learn what the step is made of, before its first part."""

    def backward(self, model: nn.Module, part: Part, autocast: torch.autocast) -> None:
        """Count the rows of a part in and add their share of the step's gradients."""


def optimizer_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: Sequence[Part],
    tally: Tally,
    *,
    clip_norm: float,
    autocast: torch.autocast,
    blocks: Blocks,
    guard: Guard,
    team: Team = ALONE,
) -> Step:
    """Train on equal parts of one batch; return its numbers and the experts' new load.

    Where a ``team`` trains together, ``model`` averages gradients over it and ``parts`` are this
    process's rows. An update that ``guard`` withholds changes neither parameters nor the
    optimizer's state nor the load; buffers that a forward pass writes have changed by then.
    """
    optimizer.zero_grad(set_to_none=True)
    tally.expect(parts)
    for i, part in enumerate(parts, start=1):
        with average_gradients(model, i == len(parts)):
            tally.backward(model, part, autocast)
    _give_every_parameter_a_gradient(model)
    numbers, count_LE, load_LE = (
        _mean_over_team(tally.numbers, team),
        tally.count_LE,
        tally.load_LE,
    )
    grad_norm, block_norms_K = blocks.gradient_norms()
    nn.utils.clip_grads_with_norm_(blocks.parameters, clip_norm, grad_norm)
    masked = guard.withholds(numbers["loss_nats"], grad_norm)
    optimizer.found_inf = masked.float()  # type: ignore[attr-defined]  # the fused kernel reads it
    optimizer.step()
    numbers |= {"grad_norm": grad_norm, "masked": masked}
    if count_LE is not None:
        share_LE = _share(team.sum(count_LE), load_LE)
        load_LE = share_LE if load_LE is None else torch.where(masked, load_LE, share_LE)
    return Step(numbers, load_LE, block_norms_K)


@dataclass(slots=True)
class TokenTally:
    """Of a language model: losses are means over the tokens of all parts.

    ``chunk`` sites of a row are held at once; ``None`` for whole rows.
    """

    knobs: ModelConfig
    load_LE: Tensor | None
    chunk: int | None = None
    numbers: Numbers = field(default_factory=dict)
    count_LE: Tensor | None = None
    n_tokens: int = 0
    """Of all parts."""

    def expect(self, parts: Sequence[Part]) -> None:
        self.n_tokens = sum(targets_BN.numel() for _, targets_BN in parts)

    def backward(self, model: nn.Module, part: Part, autocast: torch.autocast) -> None:
        if self.chunk is None:
            with autocast:
                total = self.score(model(part[0]), part[1])
            torch.autograd.backward(total)
        else:

            def apart() -> AbstractContextManager[None]:
                return average_gradients(model, False)

            backward_in_chunks(
                model, *part, self.chunk, self.score, autocast=autocast, apart=apart
            )

    def score(self, prediction: Prediction, targets_BN: Tensor) -> Tensor:
        """Count the tokens in; return their share of what is trained on."""
        said = losses(prediction, targets_BN, self.knobs, self.load_LE)
        share = targets_BN.numel() / self.n_tokens
        total = said.pop("total") * share
        for name, value in said.items():
            self.numbers[name] = self.numbers.get(name, 0) + value.detach() * share
        if prediction.routing:
            routed_LE = torch.stack([r.count_E for r in prediction.routing]).to(torch.float32)
            self.count_LE = routed_LE if self.count_LE is None else self.count_LE + routed_LE
        return total


def _mean_over_team(numbers: Numbers, team: Team) -> Numbers:
    if team.size == 1:
        return numbers
    mean_C = team.sum(torch.stack([value.double() for value in numbers.values()])) / team.size
    return dict(zip(numbers, mean_C, strict=True))


def losses(
    prediction: Prediction, targets_BN: Tensor, knobs: ModelConfig, load_LE: Tensor | None
) -> Numbers:
    """Return ``total``, which is trained on, and its parts, each a mean over tokens.

    ``loss_nats`` is the cross-entropy, of the last head where there are several;
    ``act/ponder_cost`` layers run plus remainder (Graves 2016); ``sparsity/share_computed`` the
    share of tokens that a scored layer computes; ``moe/balance`` is 1 for an even router and ``E``
    for one that knows a single expert.
    """
    loss_BN = token_loss_nats(prediction, targets_BN)
    numbers = {"loss_nats": loss_BN.mean()}
    total = numbers["loss_nats"]
    if prediction.exits:
        early = [token_loss_nats(Prediction(exit), targets_BN).mean() for exit in prediction.exits]
        numbers |= {f"exit/loss_nats_at_head_{i}": loss for i, loss in enumerate(early, start=1)}
        total = with_exits(total, early, knobs.exit_weight or 0.0)
    layers_BN, remainder_BN = prediction.layers_BN, prediction.remainder_BN
    if layers_BN is not None and remainder_BN is not None:
        numbers["act/avg_layers_executed"] = layers_BN.to(total.dtype).mean()
        numbers["act/ponder_cost"] = (layers_BN + remainder_BN).mean()
        numbers["act/share_stopped_at_layer_1"] = (layers_BN == 1).to(total.dtype).mean()
        total = total + (knobs.act_lambda or 0.0) * numbers["act/ponder_cost"]
    if prediction.lengths is not None:
        numbers |= length_losses(prediction, loss_BN, targets_BN, knobs)
        total = total + numbers.pop("total")
    if prediction.sparsity is not None:
        numbers["sparsity/share_computed"] = prediction.sparsity.computed_B.mean()
        cost = prediction.sparsity.probability_B.mean()
        total = total + (knobs.sparsity_lambda or 0.0) * cost
    if prediction.routing:
        numbers["moe/balance"] = balance(prediction, load_LE, targets_BN.numel())
        total = total + (knobs.balance_weight or 0.0) * numbers["moe/balance"]
    numbers["total"] = total
    return numbers


def with_exits(last: Tensor, early: Sequence[Tensor], weight: float) -> Tensor:
    """Return the mean loss over all heads, an early one with ``weight`` times the last one's."""
    return (last + weight * torch.stack(list(early)).sum()) / (1 + weight * len(early))


def token_loss_nats(prediction: Prediction, targets_BN: Tensor) -> Tensor:
    """Return the cross-entropy of every token, (B, N), in float32 at least."""
    logits_BNV = prediction.logits_BNV
    precise = torch.promote_types(logits_BNV.dtype, torch.float32)
    flat = cross_entropy(
        logits_BNV.flatten(0, 1).to(precise), targets_BN.flatten(), reduction="none"
    )
    return flat.view_as(targets_BN)


def balance(prediction: Prediction, load_LE: Tensor | None, n_tokens: int) -> Tensor:
    """Return the mean over layers of ``E * sum_e load_e * mean probability_e``.

    The load is that of the step before (even at first), which keeps the term linear in the tokens:
    parts of a batch add up to the whole exactly, so accumulation does not change the loss.
    Source: Fedus et al. 2021, Switch Transformers, with the load taken one step late.
    """
    probability_LE = (
        torch.stack([routed.probability_E for routed in prediction.routing]) / n_tokens
    )
    n_experts = probability_LE.shape[1]
    if load_LE is None:
        load_LE = torch.full_like(probability_LE, 1 / n_experts)
    return (n_experts * (load_LE * probability_LE).sum(1)).mean()


def _share(count_LE: Tensor, before_LE: Tensor | None) -> Tensor:
    """Return each expert's share of its layer's tokens; a layer without any keeps its share."""
    if before_LE is None:
        before_LE = torch.full_like(count_LE, 1 / count_LE.shape[1])
    total_L1 = count_LE.sum(1, keepdim=True)
    return torch.where(total_L1 > 0, count_LE / total_L1, before_LE)


def average_gradients(model: nn.Module, now: bool) -> AbstractContextManager[None]:
    """Of accumulated parts only the last one needs to talk to the other processes."""
    if isinstance(model, DistributedDataParallel) and not now:
        return model.no_sync()
    return nullcontext()


def _give_every_parameter_a_gradient(model: nn.Module) -> None:
    """A layer that no token reached has none; zero keeps its decay and momentum going."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
