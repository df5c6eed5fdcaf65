"""Rows that come in chunks: the numbers of whole rows in the memory of one chunk.

Letters: B batch, N sites.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from bkray.nn.lm import Carried, Prediction
from bkray.train.nested import mapped, real_tensors

Score = Callable[[Prediction, Tensor], Tensor]
"""What a chunk's predictions, beside its targets (B, n), add to what is trained on."""


def in_chunks(model: nn.Module, tokens_BN: Tensor, chunk: int | None) -> Iterator[Prediction]:
    """Yield what the model says of a row, one chunk after the other; ``None`` for all at once."""
    if chunk is None:
        yield model(tokens_BN)
        return
    carried: Carried | None = Carried()
    for tokens in torch.split(tokens_BN, chunk, dim=1):
        prediction: Prediction = model(tokens, carried)
        carried = prediction.carried
        yield prediction


def backward_in_chunks(
    model: nn.Module,
    inputs_BN: Tensor,
    targets_BN: Tensor,
    chunk: int,
    score: Score,
    *,
    autocast: torch.autocast,
    apart: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Add the gradients of the sum of ``score`` over the chunks of a row.

    A pass without gradients keeps what is carried over each border. Then the last chunk comes
    first: it is computed again, and the gradient of what was carried into it is handed to the
    chunk before. That is exact, and holds one chunk's activations and logits.

    ``apart`` is entered for every backward pass but the last one.
    """
    inputs = torch.split(inputs_BN, chunk, dim=1)
    targets = torch.split(targets_BN, chunk, dim=1)
    borders = [Carried()]
    with apart(), torch.no_grad(), autocast:
        for tokens in inputs[:-1]:
            borders.append(model(tokens, borders[-1], told=False).carried)
    behind: dict[str, Tensor] = {}
    for i in reversed(range(len(inputs))):
        with apart() if i else nullcontext():
            before = mapped(borders.pop(), _leaf)
            with autocast:
                said: Prediction = model(inputs[i], before)
                total = score(said, targets[i])
            onward = {name: t for name, t in real_tensors(said.carried) if name in behind}
            torch.autograd.backward(
                [total, *onward.values()], [None, *(behind[name] for name in onward)]
            )
        behind = {name: t.grad for name, t in real_tensors(before) if t.grad is not None}


def _leaf(state: Tensor) -> Tensor:
    return state.detach().requires_grad_()
