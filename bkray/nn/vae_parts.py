"""Encoders, decoders and the learned upsampler of the sequence generator.

Letters: B batch, T sites of training, L sites of the full length, D width of the data, H hidden
width, Z latent width, K cosines.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad

from bkray.nn.block import Block
from bkray.nn.moe import FeedForward
from bkray.nn.two_sided import TwoSidedMixer

N_MODES = 16
"""Cosines along the sites between a row of any length and its latent vector."""

KERNEL, N_SHAPES = 5, 8
"""Of the learned upsampler: coarse sites that a fine one sees, and shapes within a coarse site."""


class FlatEncoder(nn.Module):
    """One network over all sites at once: rows (B, T, D) to mean and log variance, (B, 2 Z)."""

    def __init__(self, n_sites: int, input_dim: int, hidden_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.read = nn.Linear(n_sites * input_dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, 2 * latent_dim)

    def forward(self, x_BTD: Tensor, condition_BH: Tensor | None) -> Tensor:
        hidden_BH = self.read(x_BTD.flatten(1))
        if condition_BH is not None:
            hidden_BH = hidden_BH + condition_BH
        out: Tensor = self.out(gelu(hidden_BH))
        return out


class FlatDecoder(nn.Module):
    """One network for all sites at once: latent vectors (B, Z) to rows (B, T, D)."""

    def __init__(self, n_sites: int, input_dim: int, hidden_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.n_sites, self.input_dim = n_sites, input_dim
        self.read = nn.Linear(latent_dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, n_sites * input_dim)

    def forward(self, z_BZ: Tensor, condition_BH: Tensor | None) -> Tensor:
        hidden_BH = self.read(z_BZ)
        if condition_BH is not None:
            hidden_BH = hidden_BH + condition_BH
        out_BS: Tensor = self.out(gelu(hidden_BH))
        return out_BS.view(-1, self.n_sites, self.input_dim)


class BKEncoder(nn.Module):
    """Sites mixed by the two-sided resolvent, then read as ``N_MODES`` cosines along the row.

    (B, T, D) to (B, 2 Z), for any T: no parameter depends on it.
    """

    def __init__(self, input_dim: int, hidden_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.read = nn.Linear(input_dim, hidden_dim)
        self.block = _block(hidden_dim)
        self.norm = nn.RMSNorm(hidden_dim)
        self.out = nn.Linear(N_MODES * hidden_dim, 2 * latent_dim)

    def forward(self, x_BTD: Tensor, condition_BH: Tensor | None) -> Tensor:
        hidden_BTH = _mixed(self.block, self.read(x_BTD), condition_BH)
        modes_KT = cosines(hidden_BTH.shape[1], N_MODES, hidden_BTH) / hidden_BTH.shape[1]
        out: Tensor = self.out((modes_KT @ self.norm(hidden_BTH)).flatten(1))
        return out


class BKDecoder(nn.Module):
    """``N_MODES`` cosines along the row, mixed by the two-sided resolvent: (B, Z) to (B, T, D).

    ``n_sites`` is T; no parameter depends on it.
    """

    def __init__(self, n_sites: int, input_dim: int, hidden_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.n_sites = n_sites
        self.read = nn.Linear(latent_dim, N_MODES * hidden_dim)
        self.block = _block(hidden_dim)
        self.norm = nn.RMSNorm(hidden_dim)
        self.out = nn.Linear(hidden_dim, input_dim)

    def forward(self, z_BZ: Tensor, condition_BH: Tensor | None) -> Tensor:
        read_BKH = self.read(z_BZ).unflatten(1, (N_MODES, -1))
        modes_TK = cosines(self.n_sites, N_MODES, read_BKH).mT / math.sqrt(N_MODES)
        out: Tensor = self.out(self.norm(_mixed(self.block, modes_TK @ read_BKH, condition_BH)))
        return out


class LearnedUpsampler(nn.Module):
    """What is added to linear interpolation: shapes within each coarse site, by its neighbours.

    Fine site ``t`` lies at ``(t + 1/2) T / L`` = coarse site ``i`` plus ``phase`` in (0, 1), and
    gets ``sum_k cos(pi k phase) c_{k,i}``; ``c`` is a filter over ``KERNEL`` coarse sites, one for
    each channel and shape. No parameter depends on T or L, and at the start nothing is added.
    """

    def __init__(self, input_dim: int) -> None:
        super().__init__()
        self.filters = nn.Conv1d(
            input_dim, input_dim * N_SHAPES, KERNEL, groups=input_dim, bias=False
        )
        nn.init.zeros_(self.filters.weight)

    def forward(self, x_BTD: Tensor, n_fine: int) -> Tensor:
        """Return what to add at ``n_fine`` = L sites, (B, L, D)."""
        n_coarse = x_BTD.shape[1]
        reach = KERNEL // 2
        around_BDT = pad(x_BTD.mT, (reach, reach), mode="replicate")
        c_BDKT = self.filters(around_BDT).unflatten(1, (-1, N_SHAPES))
        fine_L = torch.arange(n_fine, device=x_BTD.device, dtype=torch.float64)
        place_L = (fine_L + 0.5) * n_coarse / n_fine
        coarse_L = place_L.long().clamp(max=n_coarse - 1)
        k_K = torch.arange(N_SHAPES, device=x_BTD.device, dtype=torch.float64)
        shape_LK = torch.cos(math.pi * k_K * (place_L - coarse_L)[:, None]).to(x_BTD.dtype)
        spread_LKT = shape_LK.new_zeros(n_fine, N_SHAPES, n_coarse)
        spread_LKT[torch.arange(n_fine, device=x_BTD.device), :, coarse_L] = shape_LK
        added: Tensor = spread_LKT.flatten(1) @ c_BDKT.flatten(2).mT
        return added


def cosines(n_sites: int, n_modes: int, like: Tensor) -> Tensor:
    """Return ``cos(pi k (t + 1/2) / T)``, (K, T), in the dtype of ``like`` and where it is."""
    site_T = torch.arange(n_sites, device=like.device, dtype=like.dtype) + 0.5
    mode_K = torch.arange(n_modes, device=like.device, dtype=like.dtype)
    return torch.cos(math.pi / n_sites * mode_K[:, None] * site_T)


def _block(hidden_dim: int) -> Block:
    return Block(hidden_dim, TwoSidedMixer(hidden_dim), FeedForward(hidden_dim, hidden_dim), 0.0)


def _mixed(block: Block, hidden_BTH: Tensor, condition_BH: Tensor | None) -> Tensor:
    if condition_BH is not None:
        hidden_BTH = hidden_BTH + condition_BH[:, None]
    position_BT = torch.arange(hidden_BTH.shape[1], device=hidden_BTH.device)
    mixed_BTH: Tensor = block(hidden_BTH, position_BT.expand(hidden_BTH.shape[:2]), None)[0]
    return mixed_BTH
