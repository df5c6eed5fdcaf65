"""Bandwidth of the causal resolvent beside that of a copy.

    python -m benchmarks.gpu.scan [--out FOLDER] [--tiny]

A site-channel is a row, a site, a head and a value channel. Its share of the copy counts the
fewest bytes that any scan must move (``bytes``), not those that this one does: forward reads h and
x and writes the features; backward reads h and x once more with the gradient of the features, and
writes those of h and x. The copy is ``copy_`` of 2 GiB, bytes read plus bytes written. No shape
fits the second-level cache of an H200, 50 MB, for what lies there is no copy's equal.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.figure import Figure, Row, main, median_seconds
from bkray.ops.tridiagonal import causal_resolvent

SHAPES = (
    (64, 8192, 1, 64),
    (1, 131_072, 1, 64),
    (16, 8192, 6, 16),
    (64, 2048, 8, 64),
    (1, 131_072, 8, 64),
)
"""B, N, K, H."""
TINY = ((1, 32, 1, 4), (1, 16, 2, 3))
BARS = {"forward": 0.5, "forward+backward": 0.35}


def measure_all(figure: Figure) -> None:
    """One row per shape, dtype of the inputs and form."""
    copied = copy_bandwidth(figure)
    for shape in TINY if figure.tiny else SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            given = dict(zip("BNKH", shape, strict=True)) | {"inputs": str(dtype)[6:]}
            figure.row(given, partial(scanned, figure, shape, dtype, copied))


def scanned(
    figure: Figure, shape: tuple[int, int, int, int], dtype: torch.dtype, copied: float
) -> Row:
    """Time forward alone, then forward and backward; in tiny mode of the interpreter."""
    B, N, K, H = shape
    leaves, grad = draw(shape, dtype, figure.device)

    def forward() -> Tensor:
        with torch.no_grad():
            return causal_resolvent(*leaves, form="triton")

    def both() -> object:
        return torch.autograd.grad(causal_resolvent(*leaves, form="triton"), leaves, grad)

    n_bytes = fewest_bytes(K, dtype)
    found: Row = {"copy GB/s": copied / 1e9}
    works: dict[str, Callable[[], object]] = {"forward": forward, "forward+backward": both}
    for name, work in works.items():
        seconds = median_seconds(work, figure.device)
        rate = B * N * H * n_bytes[name] / seconds
        found |= {
            f"{name} ms": 1e3 * seconds,
            f"{name} bytes": n_bytes[name] / max(1, K),
            f"{name} GB/s": rate / 1e9,
            f"{name} over copy": rate / copied,
            f"{name} bar": BARS[name],
            **figure.bar(name, rate / copied >= BARS[name]),
        }
    return found


def fewest_bytes(K: int, dtype: torch.dtype) -> dict[str, int]:
    """Of a row, a site and a head, K value channels in all; features are float32."""
    inputs = (1 + K) * dtype.itemsize
    return {"forward": inputs + 8 * (1 + K), "forward+backward": 3 * inputs + 16 * (1 + K)}


def draw(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> tuple[list[Tensor], Tensor]:
    """Return h, x, energy and eta as a mixer starts with, and a gradient of the features."""
    B, N, K, H = shape
    with torch.device(device):
        h_BNH, x_BNKH = torch.randn(B, N, H) - 2, torch.randn(B, N, K, H)
        energy_H = torch.linspace(-3.5, -0.5, H)[torch.randperm(H)]
        eta_H = torch.nn.functional.softplus(torch.linspace(-4, 0.55, H))
        grad_BNFH = torch.randn(B, N, 2 * (1 + K), H)
    leaves = [h_BNH.to(dtype), x_BNKH.to(dtype), energy_H, eta_H]
    return [leaf.requires_grad_() for leaf in leaves], grad_BNFH


def copy_bandwidth(figure: Figure) -> float:
    """Bytes read and written per second."""
    source = torch.ones(1 << (12 if figure.tiny else 29), device=figure.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_seconds(lambda: target.copy_(source), figure.device)


if __name__ == "__main__":
    main("scan", "The scan beside a device copy", measure_all, 60)
