"""What is watched of a model: its blocks, their share of the gradient norm, their activations.

Letters: P parameters, K blocks.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from bkray.train.nested import real_tensors


class Blocks:
    """The parts of a model that are told apart: its children, and those of its module lists.

    ``names`` are prefixes of parameter names: ``embedding``, ``blocks.0``, ``head``.
    """

    def __init__(self, model: nn.Module) -> None:
        self._learned = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        wrapped = {n for n, child in model.named_children() if hasattr(child, "blocks")}
        owners = [_owner(name, wrapped) for name, _ in self._learned]
        self.names = tuple(dict.fromkeys(owners))
        places = [self.names.index(owner) for owner in owners]
        device = next(model.parameters()).device
        self._place_P = torch.tensor(places, device=device)
        self._modules = {n: m for n, m in model.named_modules() if n in self.names}

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those that learn, in the model's order."""
        return [parameter for _, parameter in self._learned]

    def gradient_norms(self) -> tuple[Tensor, Tensor]:
        """Return the norm of all gradients and that of each block's (K,); all must be there."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        assert len(gradients) == len(self._learned), "every parameter has a gradient"
        square_P = torch.stack(torch._foreach_norm(gradients)).square()
        square_K = square_P.new_zeros(len(self.names)).index_add_(0, self._place_P, square_P)
        return square_P.sum().sqrt(), square_K.sqrt()

    @contextmanager
    def activations(self) -> Iterator[Mapping[str, Tensor]]:
        """Yield a mapping that fills with the largest magnitude of each block's output, on the
        device; NaN where there is one. A block that did not run is missing."""
        seen: dict[str, Tensor] = {}

        def look(name: str, output: Any) -> None:
            for _, tensor in islice(real_tensors(output), 1):
                low, high = tensor.detach().aminmax()  # a fifth of abs().amax(), and no copy
                largest = torch.maximum(-low, high)
                seen[name] = torch.maximum(seen[name], largest) if name in seen else largest

        handles = [
            module.register_forward_hook(lambda _, __, output, name=name: look(name, output))
            for name, module in self._modules.items()
        ]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()


def _owner(parameter: str, wrapped: Collection[str]) -> str:
    """Return the block that a parameter belongs to, of ``blocks.0.mixer.out.weight`` the first
    two parts: a number says which of a list. Of a wrapped model the name comes in front."""
    first, *parts = parameter.split(".")
    if first in wrapped:
        return f"{first}.{_owner('.'.join(parts), ())}"
    return f"{first}.{parts[0]}" if len(parts) > 1 and parts[0].isdigit() else first
