"""The guides' counters: spikes of the loss, and gradient norms by sequence length."""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bkray.errors import ConfigError
from bkray.stability.health import is_doubled


class LossSpikeDetector:
    """Counts losses more than twice the one before.

    ``losses`` keeps the last ``window_size`` of them, and the loss before is the last finite one
    of these: with ``window_size`` not-finite losses behind it a loss has nothing to double. Finite
    losses are compared with their neighbour alone, whatever ``window_size`` is.

    Args:
        window_size: at least 1.

    Raises:
        ConfigError: ``window_size`` is below 1.
    """

    def __init__(self, window_size: int = 10) -> None:
        if window_size < 1:
            raise ConfigError(f"window_size must be at least 1, got {window_size}")
        self.losses: deque[float] = deque(maxlen=window_size)
        self._spike_count = 0

    def add_loss(self, loss: float) -> tuple[bool, float]:
        """Return whether ``loss`` is a spike, and how many times the loss before it is.

        A loss that is not finite is a spike, and its ratio what it is: NaN, or infinite. Without a
        loss before the ratio is 1; with one of 0 it is infinite, or 1 for 0 once more; a negative
        one cannot be doubled and the ratio is NaN.
        """
        before = next((past for past in reversed(self.losses) if math.isfinite(past)), None)
        self.losses.append(loss)
        if not math.isfinite(loss):
            is_spike, ratio = True, loss
        elif before is None:
            is_spike, ratio = False, 1.0
        else:
            is_spike, ratio = is_doubled(loss, before), _ratio(loss, before)
        self._spike_count += is_spike
        return is_spike, ratio

    def get_spike_count(self) -> int:
        """Return the number of spikes among all losses so far."""
        return self._spike_count


def _ratio(loss: float, before: float) -> float:
    if before > 0:
        return loss / before
    if before < 0:
        return math.nan
    return 1.0 if loss == 0 else math.copysign(math.inf, loss)


@dataclass(slots=True)
class Norms:
    """Running statistics, after Welford 1962, Technometrics 4(3), 419-420."""

    count: int = 0
    mean: float = 0.0
    square_sum: float = 0.0
    """Of the deviations from the mean."""
    low: float = math.inf
    high: float = -math.inf
    nonfinite: int = 0
    """Norms that were not finite; no other number knows of them."""

    def add(self, norm: float) -> None:
        """Take in one norm."""
        if not math.isfinite(norm):
            self.nonfinite += 1
            return
        self.count += 1
        deviation = norm - self.mean
        self.mean += deviation / self.count
        self.square_sum += deviation * (norm - self.mean)
        self.low, self.high = min(self.low, norm), max(self.high, norm)

    @property
    def std(self) -> float:
        """Standard deviation of all that was added, not an estimate from a sample of it."""
        return math.sqrt(self.square_sum / self.count) if self.count else math.nan


class GradientNormTracker:
    """Statistics of gradient norms by sequence length, in six numbers for each length."""

    def __init__(self) -> None:
        self._by_length: dict[int, Norms] = {}

    def add_norm(self, seq_len: int, grad_norm: float) -> None:
        """Take in the norm of one step; one that is not finite is counted apart."""
        self._by_length.setdefault(seq_len, Norms()).add(grad_norm)

    def get_statistics(self, seq_len: int) -> dict[str, float]:
        """Return ``mean``, ``std``, ``min`` and ``max`` of the finite norms, NaN without any."""
        norms = self._by_length.get(seq_len, Norms())
        if not norms.count:
            return dict.fromkeys(("mean", "std", "min", "max"), math.nan)
        return {"mean": norms.mean, "std": norms.std, "min": norms.low, "max": norms.high}

    def nonfinite_count(self, seq_len: int) -> int:
        """Return how many norms were NaN or infinite."""
        return self._by_length.get(seq_len, Norms()).nonfinite

    @property
    def lengths(self) -> list[int]:
        """Sequence lengths seen, in rising order."""
        return sorted(self._by_length)

    def state(self) -> dict[int, dict[str, Any]]:
        """Return all there is as plain numbers, for ``restore`` of any other tracker."""
        return {seq_len: asdict(norms) for seq_len, norms in self._by_length.items()}

    def restore(self, state: Mapping[int, Mapping[str, Any]]) -> None:
        """Go on where ``state`` was taken."""
        self._by_length = {int(n): Norms(**numbers) for n, numbers in state.items()}
