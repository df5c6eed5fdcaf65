"""Forward and backward of mixers and of their cores, by length, at equal tokens.

    python -m benchmarks.gpu.mixers [--out FOLDER] [--tiny]

131,072 tokens, width 512, bf16 autocast. The cores are what mixes and nothing else: the causal
resolvent (float32), causal ``scaled_dot_product_attention`` held to its flash kernel (bf16, heads
of 64 channels) and the selective scan of 16 states (float32; that of mamba-ssm beside ours where
it is installed, and fla's gated linear attention). The mixers are whole modules, projections
included. Attention, core and mixer, is to take longer than the resolvent and BK at every length.
"""

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention, softplus

from benchmarks.gpu.figure import Figure, Row, main, median_seconds
from benchmarks.gpu.scan import draw
from bkray.nn.build import mixer
from bkray.ops.selective_scan import selective_scan
from bkray.ops.tridiagonal import causal_resolvent
from bkray.overrides import build

SITES, TOKENS, WIDTH = (2048, 8192, 32_768, 131_072), 131_072, 512
FAMILIES = ("bk", "attention", "mamba")
RESOLVENT, FLASH = "causal resolvent, values of width D", "flash attention"
OURS, ATTENTION = {RESOLVENT, "bk"}, {FLASH, "attention"}
N_STATES, CHANNELS = 16, 64

Core = tuple[Callable[..., Any], list[Tensor]]


def measure_all(figure: Figure) -> None:
    """One row per length and contestant, ours first."""
    width, tokens = (16, 32) if figure.tiny else (WIDTH, TOKENS)
    for n_sites in (16, 32) if figure.tiny else SITES:
        size = (tokens // n_sites, n_sites, width)
        for kind, contestants in (("core", cores(size, figure)), ("mixer", mixers(size, figure))):
            seconds: dict[str, float] = {}
            for name, made in contestants:
                given = {"kind": kind, "N": n_sites, "B": size[0], "who": name}
                figure.row(given, partial(timed, figure, name, made, seconds))


def timed(figure: Figure, name: str, made: Callable[[], Core], seconds: dict[str, float]) -> Row:
    """Time one forward and backward, beside what ours took."""
    work, leaves = made()
    with torch.no_grad():
        grad = torch.ones_like(work(*leaves))

    def both() -> None:
        torch.autograd.grad(work(*leaves), leaves, grad, allow_unused=True)

    seconds[name] = median_seconds(both, figure.device)
    found: Row = {"ms": 1e3 * seconds[name]}
    for ours in OURS & seconds.keys():
        found["over ours"] = seconds[name] / seconds[ours]
        if name in ATTENTION:
            found |= figure.bar("ours is faster", seconds[ours] < seconds[name])
    return found


def cores(size: tuple[int, int, int], figure: Figure) -> Iterator[tuple[str, Callable[[], Core]]]:
    """Yield name and maker of what mixes ``size`` = (B, N, D) numbers."""
    B, N, D = size
    device = figure.device
    heads = max(1, D // 8)

    def resolvent() -> Core:
        return causal_resolvent, draw((B, N, D // heads, heads), torch.float32, device)[0]

    def attention() -> Core:
        low = torch.float32 if figure.tiny else torch.bfloat16
        channels = min(CHANNELS, D)
        shape = (B, D // channels, N, channels)
        qkv = [torch.randn(shape, device=device, dtype=low, requires_grad=True) for _ in range(3)]
        return (attended if figure.tiny else flash), qkv

    yield RESOLVENT, resolvent
    yield FLASH, attention
    yield (
        "selective scan",
        lambda: (lambda *given: selective_scan(*given)[0], states(size, device)),
    )
    if installed("mamba_ssm"):
        yield "selective scan of mamba-ssm", lambda: theirs(size, device)
    if installed("fla"):
        yield "gated linear attention of fla", lambda: linear_attention(size, device)


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v, is_causal=True)


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention by the flash kernel or not at all."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return attended(q, k, v)


def states(size: tuple[int, int, int], device: torch.device) -> list[Tensor]:
    """Return x, dt, rate, into, out and skip as a Mamba mixer starts with."""
    B, N, D = size
    with torch.device(device):
        dt_BND = softplus(torch.randn(B, N, D) - 4)
        rate_SD = -torch.arange(1.0, N_STATES + 1)[:, None].expand(-1, D).contiguous()
        sites = torch.randn(B, N, N_STATES), torch.randn(B, N, N_STATES)
        given = [torch.randn(B, N, D), dt_BND, rate_SD, *sites, torch.ones(D)]
    return [t.requires_grad_() for t in given]


def theirs(size: tuple[int, int, int], device: torch.device) -> Core:
    """Return mamba-ssm's selective scan, channels before sites as it wants them."""
    scan = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    x, dt, rate, into, out, skip = states(size, device)
    swapped = [t.detach().mT.contiguous().requires_grad_() for t in (x, dt, rate, into, out)]
    return scan, [*swapped, skip]


def linear_attention(size: tuple[int, int, int], device: torch.device) -> Core:
    """Return fla's chunked gated linear attention on heads of 64 channels."""
    B, N, D = size
    chunked = importlib.import_module("fla.ops.gla").chunk_gla
    shape = (B, N, D // CHANNELS, CHANNELS)
    given = [torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(3)]
    gate = -softplus(torch.randn(shape, device=device)).to(torch.bfloat16)
    return (lambda *of: chunked(*of)[0]), [t.requires_grad_() for t in (*given, gate)]


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def mixers(size: tuple[int, int, int], figure: Figure) -> Iterator[tuple[str, Callable[[], Core]]]:
    """Yield name and maker of whole mixers, at what the config gives them for this width."""
    B, N, D = size
    device = figure.device

    def module(family: str) -> Core:
        knobs = {"model.mixer": family, "model.d_model": D, "model.n_seq": N}
        if family == "bk":
            knobs |= {"model.n_heads": max(1, D // 8), "model.n_values": 8}
        if family == "attention":
            knobs["model.n_heads"] = max(1, D // CHANNELS)
        made = mixer(build(knobs).model)
        assert isinstance(made, nn.Module)
        made.to(device)
        position_BN = torch.arange(N, device=device).expand(B, -1)
        hidden_BND = torch.randn(B, N, D, device=device, requires_grad=True)

        def mixed(hidden_BND: Tensor, *_: Tensor) -> Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                said: Tensor = made(hidden_BND, position_BN)
            return said

        return mixed, [hidden_BND, *made.parameters()]

    for family in FAMILIES:
        yield family, partial(module, family)


if __name__ == "__main__":
    main("mixers", "Mixers, forward and backward, at equal tokens", measure_all, 110)
