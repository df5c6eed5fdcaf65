"""A gated linear recurrence, the second rival. Letters as in ``mixer``."""

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from bkray.nn.mixer import State, last_own
from bkray.ops.linear_recurrence import doubling


class LinearRecurrenceMixer(nn.Module):
    """Mix by ``y_t = a_t y_{t-1} + (1 - a_t) x_t`` per channel; the token sets ``a``.

    Gates start between 0.5 and 0.99, so that channels forget over 2 to 100 tokens. The state of a
    stream is ``y`` of the last site, (B, D).
    """

    causal = True

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.forget = nn.Linear(d_model, d_model)
        self.values = nn.Linear(d_model, d_model, bias=False)
        self.gate = nn.Linear(d_model, d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        nn.init.uniform_(self.forget.bias, 0.0, 4.6)

    def forward(self, hidden_BND: Tensor, position_BN: Tensor) -> Tensor:
        return self._mixed(hidden_BND, None)[0]

    def stream(
        self,
        hidden_BND: Tensor,
        position_BN: Tensor,
        there_BN: Tensor | None = None,
        state: State | None = None,
    ) -> tuple[Tensor, State]:
        assert not isinstance(state, tuple)
        mixed_BND, y_BND = self._mixed(hidden_BND, state)
        return mixed_BND, last_own(y_BND, there_BN, state)

    def _mixed(self, hidden_BND: Tensor, before_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        # The scan stays in float32 under autocast: bf16 cannot tell a gate of 0.999 from 1.
        precise = torch.promote_types(hidden_BND.dtype, torch.float32)
        a_BND = self.forget(hidden_BND).to(precise).sigmoid()
        y_BND = doubling(a_BND, (1 - a_BND) * self.values(hidden_BND).to(precise), before_BD)
        mixed: Tensor = self.out(y_BND.to(hidden_BND.dtype) * silu(self.gate(hidden_BND)))
        return mixed, y_BND
