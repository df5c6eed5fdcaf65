"""Hooks that tell which tensor between the modules of a model is the first not to be finite.

Letters: B rows of one part of a batch, N sites, M sites still running.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from bkray.nn.block import Block
from bkray.nn.lm import Carried, sites_of
from bkray.train.nested import mapped, real_tensors

Pass = Literal["forward", "backward"]


class Spot(NamedTuple):
    """One token of one part; ``n_tokens`` of its tokens share the fault."""

    row: int
    position: int
    n_tokens: int
    tokens: tuple[int, ...]
    """The whole row, or the chunk of it that was computed."""
    first: int = 0
    """Position of the first of ``tokens``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A tensor that is not finite, in the order in which they came up."""

    during: Pass
    module: str
    """The innermost one whose own work it is: what came in was finite."""
    tensor: str
    part: int
    """Of the batch, from 0."""
    n_nan: int
    n_inf: int
    shape: tuple[int, ...]
    spot: Spot | None
    """``None`` where all tokens are hit, or the tensor's shape does not say which."""
    has_sites: bool
    """Whether the tensor has a place for each token."""


class _Sites(NamedTuple):
    """Where the tokens of a (B, M, ...) tensor stand in the whole sequence."""

    position_BM: Tensor
    there_BM: Tensor | None
    """False where a row is padded."""


@dataclass(slots=True)
class _Call:
    """A module at work."""

    name: str
    sites: _Sites


@dataclass(slots=True)
class Probe:
    """Watches every forward pass of ``model`` while it is open, and ``backward`` ones if told to.

    ``faults`` holds all tensors that are not finite, the first one first: inputs, outputs and own
    parameters of modules in the order of execution, then gradients in the order of the backward
    pass. An output is the work of its module; an input, and the gradient of an output, the work of
    the module that called it. Watching a forward pass changes no number; a watched backward pass
    may add gradients up in another order.
    """

    model: nn.Module
    backward: bool = False
    faults: list[Fault] = field(default_factory=list)
    _part: int = -1
    _first: int = 0
    _tokens_BN: Tensor | None = None
    _calls: list[_Call] = field(default_factory=list)
    _handles: list[Any] = field(default_factory=list)

    def __enter__(self) -> "Probe":
        for path, module in self.model.named_modules():
            name = path or type(module).__name__
            self._watch(module, name)
            for own, parameter in module.named_parameters(recurse=False):
                if self.backward and parameter.requires_grad:
                    look = self._looking(name, f"gradient of {own}")
                    self._handles.append(parameter.register_hook(look))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _watch(self, module: nn.Module, name: str) -> None:
        def before(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
            return self._begin(module, name, args, kwargs)

        def after(_: nn.Module, __: Any, output: Any) -> Any:
            return self._end(module, name, output)

        self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        self._handles.append(module.register_forward_hook(after))

    def _begin(self, module: nn.Module, name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Look at what a module is given and holds; return what it shall be given."""
        if module is self.model:
            self._begin_part(args, kwargs)
        caller = self._calls[-1] if self._calls else self._first_call(name)
        given = (*args, *kwargs.values())
        for label, tensor in real_tensors(given[0] if len(given) == 1 else given):
            self._look(caller, f"input{label} of {name}", tensor)
        call = _Call(name, _block_sites(module, args) or caller.sites)
        for label, tensor in _own_tensors(module):
            self._look(call, label, tensor)
        self._calls.append(call)
        if not self.backward:
            return args, kwargs
        watched = self._pass_on("gradient of input", name, name, call.sites)
        passed: dict[int, Tensor] = {}  # where q is k it stays so

        def once(tensor: Tensor) -> Tensor:
            if id(tensor) not in passed:
                passed[id(tensor)] = watched(tensor)
            return passed[id(tensor)]

        return mapped(args, once), mapped(kwargs, once)

    def _end(self, module: nn.Module, name: str, output: Any) -> Any:
        """Look at what a module gives; return what it shall give."""
        call = self._calls.pop()
        caller = self._calls[-1] if self._calls else None
        sites = call.sites
        if caller is not None and isinstance(module, Block):
            caller.sites = sites  # what comes next works on the same tokens
        elif caller is not None:
            sites = caller.sites
        for label, tensor in real_tensors(output):
            self._look(_Call(name, sites), f"output{label}", tensor)
        if not self.backward:
            return output
        consumer = caller.name if caller else "loss"
        return mapped(output, self._pass_on("gradient of output", name, consumer, sites))

    def _begin_part(self, args: Any, kwargs: Any) -> None:
        carried = next((x for x in (*args, *kwargs.values()) if isinstance(x, Carried)), None)
        self._first = 0 if carried is None else carried.n_sites
        # Chunks of a part: the first pass over them is without gradients, as is an evaluation.
        self._part += carried is None or (self._first == 0 and not torch.is_grad_enabled())
        self._calls.clear()
        self._tokens_BN = next(t for t in (*args, *kwargs.values()) if isinstance(t, Tensor))

    def _first_call(self, name: str) -> _Call:
        assert self._tokens_BN is not None
        return _Call(name, _Sites(sites_of(self._tokens_BN, self._first), None))

    def _pass_on(
        self, what: str, name: str, blamed: str, sites: _Sites
    ) -> Callable[[Tensor], Tensor]:
        """Return what lets a tensor pass and looks at its gradient on the way back.

        A gradient is looked at on its own branch, before what others say of the same tensor is
        added, so that it is the work of one module.
        """
        label = f"{what} of {name}" if blamed != name else what

        def passed(tensor: Tensor) -> Tensor:
            if not tensor.requires_grad:
                return tensor
            branch = tensor.view_as(tensor)
            branch.register_hook(self._looking(blamed, label, sites))  # type: ignore[no-untyped-call]
            return branch

        return passed

    def _looking(
        self, module: str, label: str, sites: _Sites | None = None
    ) -> Callable[[Tensor], None]:
        return lambda gradient: self._note("backward", module, label, gradient, sites)

    def _look(self, call: _Call, label: str, tensor: Tensor) -> None:
        self._note("forward", call.name, label, tensor, call.sites)

    def _note(
        self, during: Pass, module: str, label: str, tensor: Tensor, sites: _Sites | None
    ) -> None:
        tensor = tensor.detach()
        if tensor.isfinite().all():
            return
        spot, has_sites = None, False
        if sites is not None and tensor.dim() > 2:
            has_sites = tensor.shape[:2] == sites.position_BM.shape
            spot = self._spot(tensor, sites, last=during == "backward") if has_sites else None
        fault = Fault(
            during=during,
            module=module,
            tensor=label,
            part=self._part,
            n_nan=int(tensor.isnan().sum()),
            n_inf=int(tensor.isinf().sum()),
            shape=tuple(tensor.shape),
            spot=spot,
            has_sites=has_sites,
        )
        self.faults.append(fault)

    def _spot(self, tensor: Tensor, sites: _Sites, *, last: bool) -> Spot | None:
        """Return the earliest token that is hit, in a backward pass the last: the future of a
        token cannot have spoilt it, nor its past the gradient."""
        assert self._tokens_BN is not None
        if len(tensor) != len(self._tokens_BN):  # rows of one length: which ones is not known here
            return None
        bad_BM = (~tensor.isfinite()).flatten(2).any(-1)
        if sites.there_BM is not None:
            bad_BM = bad_BM & sites.there_BM
        n_there = bad_BM.numel() if sites.there_BM is None else int(sites.there_BM.sum())
        rows, places = bad_BM.nonzero(as_tuple=True)
        if len(rows) in (0, n_there):
            return None
        positions = sites.position_BM[rows, places]
        position = int(positions.max() if last else positions.min())
        row = int(rows[positions == position].min())
        return Spot(row, position, len(rows), tuple(self._tokens_BN[row].tolist()), self._first)


def _block_sites(module: nn.Module, args: Any) -> _Sites | None:
    if not isinstance(module, Block):
        return None
    _, position_BM, there_BM = args
    return _Sites(position_BM, there_BM)


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in module.named_parameters(recurse=False):
        yield f"parameter {name}", parameter
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.is_floating_point():
            yield f"buffer {name}", buffer
