"""How much a model scatters: Schatten norms and condition number of its potentials.

They are looked at and never act on the model, but for the one answer that is asked for: a layer
whose condition number passes ``train.precision_upgrade`` scans in float64 from then on.
Letters: B rows, N sites, H heads, W windows, L layers.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bkray.nn.bk import BKMixer, bounded
from bkray.train.chunked import in_chunks

SITES = 512
"""Sites to look at in windows of their own; one window at least, ``MOST_WINDOWS`` at most. What
costs is the exact trace norm, N^3 per head: 3 ms at 128 sites, 0.2 s at 512."""
MOST_WINDOWS = 4


class Spectrum(NamedTuple):
    """What was seen. A NaN in a potential is a NaN in the numbers."""

    metrics: dict[str, float]
    """Under full names: means over layers, heads and windows, ``condition_number`` the largest."""
    conditions: dict[str, float]
    """The largest condition number of each layer, by the name of its mixer."""


@torch.no_grad()
def spectrum(
    model: nn.Module, inputs_WN: Tensor, *, chunk: int | None, autocast: torch.autocast
) -> Spectrum:
    """Look at the first windows, one at a time, so that no row is padded; keep the mode.

    ``stability/schatten_s1`` is exact on chains of up to 512 sites; above that it is its bound,
    and ``stability/schatten_s1_first_512`` the exact one of the first 512 sites. Chains are those
    that the mixers see: tokens that left are not in them.
    """
    n_windows = min(max(SITES // inputs_WN.shape[1], 1), MOST_WINDOWS, len(inputs_WN))
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    numbers: dict[str, list[Tensor]] = {}
    conditions: dict[str, list[Tensor]] = {}
    for inputs_1N in torch.split(inputs_WN[:n_windows], 1):
        with _potentials(model) as seen, autocast:
            for _ in in_chunks(model, inputs_1N.to(device), chunk):
                pass
        for name, (mixer, parts) in seen.items():
            v_BNH = torch.cat(parts, dim=1).cpu()
            of_chain = chain_numbers(v_BNH, mixer.energy.detach(), mixer.eta.detach())
            conditions.setdefault(name, []).append(of_chain["condition_number"].max())
            for number, value_BH in of_chain.items():
                numbers.setdefault(number, []).append(value_BH.flatten())
    model.train(was_training)
    metrics = {
        f"stability/{name}": float(torch.cat(values).mean()) for name, values in numbers.items()
    }
    largest = {name: float(torch.stack(values).max()) for name, values in conditions.items()}
    metrics["stability/condition_number"] = float(
        torch.tensor(list(largest.values()), dtype=torch.float64).max()
    )
    return Spectrum(metrics, largest)


def chain_numbers(v_BNH: Tensor, energy_H: Tensor, eta_H: Tensor) -> dict[str, Tensor]:
    """Return what there is to say of each chain, (B, H)."""
    from bkray.ops import birman_schwinger as bs  # LAPACK's wrapper costs a second to import

    bound_BH = bs.schatten_s1_bound(v_BNH, energy_H, eta_H)
    exact_BH = bs.exact_s1(v_BNH[:, : bs.EXACT_SITES], energy_H, eta_H)
    is_whole = v_BNH.shape[1] <= bs.EXACT_SITES
    numbers = {
        "schatten_s1": exact_BH if is_whole else bound_BH,
        "schatten_s1_bound": bound_BH,
        "schatten_s2": bs.schatten_s2(v_BNH, energy_H, eta_H),
        "schatten_s2_bound": bs.schatten_s2_bound(v_BNH, energy_H, eta_H),
        "condition_number": bs.condition_number(v_BNH, energy_H, eta_H),
    }
    return numbers if is_whole else {**numbers, f"schatten_s1_first_{bs.EXACT_SITES}": exact_BH}


@contextmanager
def _potentials(model: nn.Module) -> Iterator[dict[str, tuple[BKMixer, list[Tensor]]]]:
    """Yield a mapping that fills with each mixer's potential, chunk by chunk, by its name."""
    seen: dict[str, tuple[BKMixer, list[Tensor]]] = {}
    handles = []
    for name, mixer in model.named_modules():
        if isinstance(mixer, BKMixer):

            def look(
                _: nn.Module, __: object, u: Tensor, name: str = name, mixer: BKMixer = mixer
            ) -> None:
                precise = torch.promote_types(u.dtype, torch.float32)
                seen.setdefault(name, (mixer, []))[1].append(bounded(u.to(precise)))

            handles.append(mixer.potential.register_forward_hook(look))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def scan_in_float64(model: nn.Module, names: Collection[str]) -> None:
    """Let the mixers of these names scan in float64, and no other one."""
    for name, mixer in model.named_modules():
        if isinstance(mixer, BKMixer):
            mixer.in_float64 = name in names
