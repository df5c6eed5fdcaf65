"""A model that breaks at a chosen step, in a chosen module, at one token or everywhere."""

import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tiny import tiny_config
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from trials import KINDS, SHORT

from bkray.config import TrialConfig
from bkray.events import Event
from bkray.nn.build import language_model
from bkray.overrides import build
from bkray.sinks.parquet import ParquetSink
from bkray.train.team import Team
from bkray.trial import run

EVERYWHERE = -1
_ACTS_IN_MODEL = {"dropout", "n_experts", "top_k", "balance_weight", "depth", "act_threshold"}


def faulty_config(
    text: Path,
    module: str,
    *,
    step: int,
    where: str = "forward",
    what: str = "nan",
    row: int = EVERYWHERE,
    position: int = EVERYWHERE,
    kind: str = "dense",
    mixer: str = "linear_recurrence",
    masked: bool = False,
    **knobs: Any,
) -> TrialConfig:
    """Return a short trial of the model below; ``knobs`` are those of data, plan and optimizer.

    ``where`` is ``forward``, ``backward``, ``once``: a forward pass that is fine when it is
    repeated, ``second``: what hangs on the second process of a team, or ``hidden``: of every step
    from then on, and mended before the last block, so that loss and gradients are finite.
    ``masked`` adds a module that says minus infinity in every step, as masks of scores do.
    ``what`` is ``nan``, ``inf``, or ``raise``: NaN, and an exception when it is repeated.
    """
    plan = {name: value for name, value in SHORT.items() if name != "n_layers"}
    options = {
        "module": module,
        "step": step,
        "where": where,
        "what": what,
        "row": row,
        "position": position,
        "kind": kind,
        "mixer": mixer,
        "masked": masked,
    }
    options = {f"model.options.{name}": value for name, value in options.items()}
    model = {"model.build": "faults:faulty", "n_seq": 16}
    return build({**plan, "corpus": str(text), **model, **options, **knobs})


def faulty(config: TrialConfig, vocab_size: int) -> nn.Module:
    """Return a language model of two layers with the fault that ``config.model.options`` say."""
    said: dict[str, Any] = dict(config.model.options or {})
    knobs = {k: v for k, v in KINDS[said["kind"]].items() if k in _ACTS_IN_MODEL}
    model = language_model(
        tiny_config(said["mixer"], **{**knobs, "n_layers": 2}).model, vocab_size
    )
    target = model.get_submodule(said["module"])
    target.register_buffer("n_calls", torch.zeros((), dtype=torch.int64))
    target.register_forward_hook(Fault(said))
    if said["where"] == "hidden":
        model.blocks[-1].register_forward_pre_hook(
            lambda _, given: (given[0].nan_to_num(), *given[1:])
        )
    if said["masked"]:
        mask = Mask()
        model.blocks[0].mixer.add_module("mask", mask)
        model.blocks[0].register_forward_pre_hook(
            lambda _, given: (given[0] + 0 * mask(given[0]).softmax(-1), *given[1:])
        )
    return model


class Mask(nn.Module):
    """Lets only the first channel take part."""

    def forward(self, scores: Tensor) -> Tensor:
        return torch.cat([scores[..., :1], torch.full_like(scores[..., 1:], -math.inf)], -1)


class Fault:
    """Spoils what a module gives, or the gradient it gets, at its ``step``-th call in training."""

    def __init__(self, said: dict[str, Any]) -> None:
        self.step, self.where = said["step"], said["where"]
        self.row, self.position = said["row"], said["position"]
        self.value = math.inf if said["what"] == "inf" else math.nan
        self.raises = said["what"] == "raise"
        self.n_happened = 0

    def __call__(self, module: nn.Module, _: Any, output: Any) -> Any:
        if not module.training:
            return output
        module.n_calls += 1  # type: ignore[operator, assignment]
        n_calls = int(module.n_calls)  # type: ignore[arg-type]
        is_due = n_calls >= self.step if self.where == "hidden" else n_calls == self.step
        if not is_due or self._is_quiet():
            return output
        self.n_happened += 1
        if self.raises and self.n_happened > 1:
            raise ArithmeticError("again")
        if isinstance(output, Tensor):
            return self._spoilt(output)
        first, *rest = output
        parts = (self._spoilt(first), *rest)
        return type(output)(*parts) if hasattr(output, "_fields") else parts

    def _is_quiet(self) -> bool:
        if self.where == "second":
            return not dist.is_initialized() or dist.get_rank() != 1
        return self.where == "once" and self.n_happened > 0

    def _spoilt(self, tensor: Tensor) -> Tensor:
        mask = torch.zeros(tensor.shape, dtype=torch.bool)
        if self.position == EVERYWHERE:
            mask[:] = True
        else:
            mask[self.row, self.position] = True
        if self.where == "backward":
            spoilt: Tensor = _Backward.apply(tensor, mask, self.value)  # type: ignore[no-untyped-call]
            return spoilt
        return tensor.masked_fill(mask, self.value)


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, mask: Tensor, value: float) -> Tensor:
        ctx.mask, ctx.value = mask, value
        return tensor.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.masked_fill(ctx.mask, ctx.value), None, None


def recorded(team: Team, config: TrialConfig, folder: Path) -> list[Event]:
    """Run a trial and keep its files, as a carrier does."""
    sink = ParquetSink(folder) if team.leads else None
    events = []
    for event in run(config, folder, team=team):
        events.append(event)
        if sink:
            sink(event)
    if sink:
        sink.close()
    return events
