"""The Mamba mixer: a selective state space model, the third rival.

Letters: B batch, N sites, D width, E inner width, S states per inner channel, K sites of the
convolution. Source: Gu and Dao 2023, Mamba: Linear-Time Sequence Modeling with Selective State
Spaces.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, silu, softplus

from bkray.nn.mixer import State
from bkray.ops.causal_conv import causal_conv
from bkray.ops.selective_scan import selective_scan

CONV_SITES = 4
"""Sites that the convolution in front of the scan sees: itself and 3 before it."""

STEPS = (1e-3, 0.1)
"""Where the step sizes start, evenly in their logarithm: the slowest state remembers 1,000 sites
in the channels of the smallest, 10 in those of the largest."""

WIDTH_PER_RANK = 16
"""The token sets its steps through ``D / 16`` numbers, not ``E``."""


class MambaMixer(nn.Module):
    """Mix by ``h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t``, ``y_t = C_t . h_t + skip x_t``.

    ``x`` are ``expand`` times as many channels as the model's, which a short convolution and a
    silu made. Each has ``d_state`` states with rates ``A < 0`` that are learned; the token sets
    its step ``dt`` for every channel, and ``B`` and ``C`` for all of them. A gate of the token and
    a projection back to the width follow. The state of a stream is what the convolution has yet
    to see, (B, K - 1, E), and ``h`` of the last site, (B, S, E).
    """

    causal = True

    def __init__(self, d_model: int, d_state: int = 16, expand: int = 2) -> None:
        super().__init__()
        self.d_state, self.d_inner = d_state, expand * d_model
        self.rank = math.ceil(d_model / WIDTH_PER_RANK)
        self.into = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.taps = nn.Parameter(torch.empty(CONV_SITES, self.d_inner))
        self.taps_bias = nn.Parameter(torch.empty(self.d_inner))
        self.select = nn.Linear(self.d_inner, self.rank + 2 * d_state, bias=False)
        self.step = nn.Linear(self.rank, self.d_inner)
        # Kept flat: matrices decay, and a rate that decays to 1 is another model.
        log_rate_S = torch.arange(1, d_state + 1, dtype=torch.float32).log()
        self.log_rate = nn.Parameter(log_rate_S.repeat_interleave(self.d_inner))
        self.skip = nn.Parameter(torch.ones(self.d_inner))
        self.out = nn.Linear(self.d_inner, d_model, bias=False)
        self._start()

    def _start(self) -> None:
        for part in (self.taps, self.taps_bias):
            nn.init.uniform_(part, -(CONV_SITES**-0.5), CONV_SITES**-0.5)
        nn.init.uniform_(self.step.weight, -(self.rank**-0.5), self.rank**-0.5)
        low, high = (math.log(step) for step in STEPS)
        step_E = torch.empty(self.d_inner).uniform_(low, high).exp()
        with torch.no_grad():
            self.step.bias.copy_(step_E.expm1().log())  # what softplus makes the step of

    def forward(self, hidden_BND: Tensor, position_BN: Tensor) -> Tensor:
        return self.stream(hidden_BND, position_BN)[0]

    def stream(
        self,
        hidden_BND: Tensor,
        position_BN: Tensor,
        there_BN: Tensor | None = None,
        state: State | None = None,
    ) -> tuple[Tensor, State]:
        assert not isinstance(state, Tensor)
        tail_BKE, before_BSE = (None, None) if state is None else state
        # The scan and its steps stay in float32 under autocast: bf16 cannot tell a decay of 0.999
        # from 1.
        precise = torch.promote_types(hidden_BND.dtype, torch.float32)
        if there_BN is not None:  # what stands in the padding may be a NaN
            hidden_BND = hidden_BND.masked_fill(~there_BN[..., None], 0)
        x_BNE, gate_BNE = self.into(hidden_BND).chunk(2, dim=-1)
        x_BNE = x_BNE.to(precise)
        seen_BME = (
            pad(x_BNE, (0, 0, CONV_SITES - 1, 0))
            if tail_BKE is None
            else torch.cat([tail_BKE, x_BNE], dim=1)
        )
        x_BNE = silu(causal_conv(seen_BME, self.taps, self.taps_bias))
        low_BNR, into_BNS, out_BNS = self.select(x_BNE).split(
            (self.rank, self.d_state, self.d_state), dim=-1
        )
        dt_BNE = self._steps(low_BNR.to(precise))
        if there_BN is not None:  # a step of 0 leaves the states as they are
            dt_BNE = dt_BNE.masked_fill(~there_BN[..., None], 0)
        rate_SE = -self.log_rate.exp().view(self.d_state, self.d_inner)
        y_BNE, behind_BSE = selective_scan(
            x_BNE, dt_BNE, rate_SE, into_BNS, out_BNS, self.skip, before_BSE
        )
        mixed: Tensor = self.out(y_BNE.to(hidden_BND.dtype) * silu(gate_BNE))
        return mixed, (_tail(seen_BME, there_BN), behind_BSE)

    def _steps(self, low_BNR: Tensor) -> Tensor:
        with torch.autocast(low_BNR.device.type, enabled=False):
            return softplus(linear(low_BNR, self.step.weight, self.step.bias))


def _tail(seen_BME: Tensor, there_BN: Tensor | None) -> Tensor:
    """Return the ``K - 1`` sites up to each row's last own one; a copy, as of ``last_own``."""
    n_past = CONV_SITES - 1
    if there_BN is None:
        return seen_BME[:, -n_past:].clone()
    place_BK = there_BN.sum(1)[:, None] + torch.arange(n_past, device=seen_BME.device)
    return seen_BME.gather(1, place_BK[..., None].expand(-1, -1, seen_BME.shape[-1]))
