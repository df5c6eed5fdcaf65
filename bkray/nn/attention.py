"""Causal softmax attention, the first rival. Letters as in ``mixer``; H heads, C channels."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

ROPE_BASE = 10_000.0


class AttentionMixer(nn.Module):
    """Multi-head attention over the sites seen so far; ``rope`` turns queries and keys."""

    causal = True

    def __init__(self, d_model: int, n_heads: int, *, rope: bool) -> None:
        super().__init__()
        self.n_heads, self.rope = n_heads, rope
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, hidden_BND: Tensor, position_BN: Tensor) -> Tensor:
        qkv = self.qkv(hidden_BND).unflatten(-1, (3, self.n_heads, -1))
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        if self.rope:
            q, k = rotate(q, position_BN), rotate(k, position_BN)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        projected: Tensor = self.out(mixed.transpose(1, 2).flatten(-2))
        return projected


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
