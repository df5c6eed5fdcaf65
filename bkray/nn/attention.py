"""Causal softmax attention, the first rival. Letters as in ``mixer``; H heads, C channels."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from bkray.errors import ConfigError
from bkray.nn.mixer import State

ROPE_BASE = 10_000.0

LEAST_QUERIES = 256
"""Queries of a stream that share one product with their keys, or a window of them if more."""


class AttentionMixer(nn.Module):
    """Multi-head attention over the sites seen so far; ``rope`` turns queries and keys.

    As a stream it is another computation: a site sees itself and the ``window - 1`` sites before
    it, no more. The state holds their keys and values, as they are before rope, their positions
    and how many there are. Over sequences up to ``window`` both say the same.
    """

    causal = True

    def __init__(
        self, d_model: int, n_heads: int, *, rope: bool, window: int | None = None
    ) -> None:
        super().__init__()
        self.n_heads, self.rope, self.window = n_heads, rope, window
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, hidden_BND: Tensor, position_BN: Tensor) -> Tensor:
        q, k, v = self._queries_keys_values(hidden_BND)
        if self.rope:
            q, k = rotate(q, position_BN), rotate(k, position_BN)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        projected: Tensor = self.out(mixed.transpose(1, 2).flatten(-2))
        return projected

    def stream(
        self,
        hidden_BND: Tensor,
        position_BN: Tensor,
        there_BN: Tensor | None = None,
        state: State | None = None,
    ) -> tuple[Tensor, State]:
        if self.window is None:
            raise ConfigError("attention without a window has no bounded state: give it a window")
        q, k, v = self._queries_keys_values(hidden_BND)
        n_past = self.window - 1
        if state is None:
            none_BHWC = k.new_zeros(*k.shape[:2], n_past, k.shape[-1])
            nowhere_BW = position_BN.new_zeros(len(position_BN), n_past)
            state = none_BHWC, none_BHWC, nowhere_BW, position_BN.new_zeros(len(position_BN))
        k_past, v_past, position_past, n_past_B = state
        k, v = torch.cat([k_past, k], dim=2), torch.cat([v_past, v], dim=2)
        position_BK = torch.cat([position_past, position_BN], dim=1)
        n_own_B = (
            torch.full_like(n_past_B, position_BN.shape[1])
            if there_BN is None
            else there_BN.sum(1)
        )
        behind = _behind(k, v, position_BK, n_past_B, n_own_B, n_past)
        if self.rope:
            # Scores depend on distances alone, and float32 cannot turn by an angle of a million.
            start_B1 = position_BN[:, :1]
            q, k = rotate(q, position_BN - start_B1), rotate(k, position_BK - start_B1)
        mixed = windowed(q, k, v, n_past - n_past_B)
        projected: Tensor = self.out(mixed.transpose(1, 2).flatten(-2))
        return projected, behind

    def shares(self, hidden_BND: Tensor, position_BN: Tensor, place_Q: Tensor) -> Tensor:
        """Return how the sites at ``place`` share their attention out, (B, H, Q, N), over a whole
        row; in float32 at least."""
        q, k, _ = self._queries_keys_values(hidden_BND)
        if self.rope:
            q, k = rotate(q, position_BN), rotate(k, position_BN)
        score_BHQN = q[:, :, place_Q] @ k.mT / q.shape[-1] ** 0.5
        ahead_QN = torch.arange(k.shape[2], device=q.device) > place_Q[:, None]
        precise = torch.promote_types(score_BHQN.dtype, torch.float32)
        seen_BHQN: Tensor = score_BHQN.to(precise).masked_fill(ahead_QN, -torch.inf)
        return seen_BHQN.softmax(-1)

    def _queries_keys_values(self, hidden_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return them as (B, H, N, C) each."""
        qkv = self.qkv(hidden_BND).unflatten(-1, (3, self.n_heads, -1))
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        return q, k, v


def windowed(q_BHNC: Tensor, k_BHKC: Tensor, v_BHKC: Tensor, first_B: Tensor) -> Tensor:
    """Return what every query reads of its own key and the ``K - N`` before it.

    Keys before a row's ``first`` are not there. Queries come in blocks, so that the scores of a
    long chunk are never held at once.
    """
    n_sites, n_keys = q_BHNC.shape[2], k_BHKC.shape[2]
    n_past = n_keys - n_sites
    block = max(n_past + 1, LEAST_QUERIES)
    said = []
    for begin in range(0, n_sites, block):
        q = q_BHNC[:, :, begin : begin + block]
        keys = slice(begin, begin + q.shape[2] + n_past)
        place_K = torch.arange(n_keys, device=q.device)[keys]
        last_Q1 = place_K[n_past:, None]
        in_window_QK = (place_K <= last_Q1) & (place_K >= last_Q1 - n_past)
        seen_B1QK = in_window_QK & (place_K >= first_B[:, None, None, None])
        k, v = k_BHKC[:, :, keys], v_BHKC[:, :, keys]
        said.append(scaled_dot_product_attention(q, k, v, attn_mask=seen_B1QK))
    return torch.cat(said, dim=2)


def _behind(
    k_BHKC: Tensor,
    v_BHKC: Tensor,
    position_BK: Tensor,
    n_past_B: Tensor,
    n_own_B: Tensor,
    n_past: int,
) -> State:
    """Return the state behind a chunk of ``n_own`` own sites in each row."""
    place_BW = n_own_B[:, None] + torch.arange(n_past, device=n_own_B.device)
    of_keys = place_BW[:, None, :, None].expand(-1, k_BHKC.shape[1], -1, k_BHKC.shape[3])
    return (
        k_BHKC.gather(2, of_keys),
        v_BHKC.gather(2, of_keys),
        position_BK.gather(1, place_BW),
        (n_past_B + n_own_B).clamp(max=n_past),
    )


def rotate(x_BHNC: Tensor, position_BN: Tensor) -> Tensor:
    """Turn each pair of channels by an angle that grows with the position (rotary embedding).

    Scores then depend on the distance of two tokens alone. Source: Su et al. 2021, RoFormer.
    """
    half = x_BHNC.shape[-1] // 2
    # Angles grow with the position, far beyond what bfloat16 can tell apart.
    precise = torch.promote_types(x_BHNC.dtype, torch.float32)
    exponents = torch.arange(half, dtype=precise, device=x_BHNC.device) / half
    angle = position_BN[:, None, :, None] * ROPE_BASE**-exponents
    cos, sin = angle.cos().to(x_BHNC.dtype), angle.sin().to(x_BHNC.dtype)
    a, b = x_BHNC[..., :half], x_BHNC[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
