"""Least squares with a handful of parameters: the minimum, and intervals by profile likelihood.

Numbers in, numbers out. Letters: R residuals, P parameters.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Function = Callable[[Array], tuple[float, Array]]
"""Parameters (P,) to a number and its gradient (P,)."""

_STEPS = 200
_DOUBLINGS = 12
"""Of the distance to the end of an interval, before it is called infinite."""
_STIFFNESS = 100.0
"""Of the spring that holds a function at its target, relative to the squared error's own."""
_TINY = 1e-150  # squared it is still above 0
_CLOSE = 1e-3  # of the distance to an end


@dataclass(frozen=True)
class LeastSquares:
    """The sum of squares of ``residuals``: parameters (P,) to values (R,) and gradients (R, P).

    A value that is not finite says that the parameters are not allowed.
    """

    residuals: Callable[[Array], tuple[Array, Array]]

    def squared_error(self, theta_P: Array) -> float:
        """Return the sum of squares, infinite where the parameters are not allowed."""
        return _squared(self.residuals(theta_P)[0])

    def descend(self, theta_P: Array) -> Array:
        """Return the minimum that is reached from allowed parameters.

        Source: Levenberg 1944 and Marquardt 1963, scaled by columns.
        """
        return _descend(self.residuals, theta_P)

    def interval(
        self, theta_P: Array, function: Function, reach: float, near: float = math.inf
    ) -> tuple[float, float]:
        """Return the least and the greatest value of ``function`` among all parameters whose
        squared error is at most ``reach`` squared above that of the minimum ``theta_P``. The reach
        must be above 0, and above rounding.

        Either may be infinite. Ends are within 0.1% of their distance from the minimum; the search
        begins at most ``near`` away from it.
        """
        near = min(reach * self._deviation(theta_P, function(theta_P)[1]) or 1.0, near)
        return (
            self._end(theta_P, function, reach, -near),
            self._end(theta_P, function, reach, near),
        )

    def _end(self, theta_P: Array, function: Function, wanted: float, first: float) -> float:
        """Follow the profile of ``function`` until the root of the squared error's growth is
        ``wanted``."""
        least, start = self.squared_error(theta_P), function(theta_P)[0]
        inside, outside = (start, 0.0), None
        stiffness = _STIFFNESS * (wanted / first) ** 2
        target = start + first * (1 + 1 / _STIFFNESS)  # lands on the end, were all linear
        for n_doublings in range(_DOUBLINGS + 30):
            found_P = _descend(_held(self.residuals, function, target, stiffness), theta_P)
            here = function(found_P)[0]
            grown = math.sqrt(max(self.squared_error(found_P) - least, 0.0))
            if abs(grown / wanted - 1) < _CLOSE:
                return here
            if grown < wanted:
                inside, theta_P = (target, grown), found_P
            else:
                outside = (target, grown)
            if outside is None:
                if n_doublings == _DOUBLINGS:
                    return math.copysign(math.inf, first)
                target = start + 2 * (target - start)
                continue
            share = (wanted - inside[1]) / (outside[1] - inside[1])
            target = inside[0] + min(max(share, 0.05), 0.95) * (outside[0] - inside[0])
        return here

    def _deviation(self, theta_P: Array, slope_P: Array) -> float:
        """Return by how much a function of this gradient moves per unit of residual, linearly."""
        gradient_RP = self.residuals(theta_P)[1]
        scale_P = _scales(gradient_RP)
        moved_R = np.linalg.lstsq((gradient_RP / scale_P).T, slope_P / scale_P, rcond=None)[0]
        return float(np.linalg.norm(moved_R))


def coordinate(place: int, n_parameters: int) -> Function:
    """Return the parameter at ``place`` as a function of all of them."""
    unit_P = np.eye(n_parameters)[place]
    return lambda theta_P: (float(theta_P[place]), unit_P)


def _held(
    residuals: Callable[[Array], tuple[Array, Array]],
    function: Function,
    target: float,
    stiffness: float,
) -> Callable[[Array], tuple[Array, Array]]:
    """Return the residuals and one more, a spring between ``function`` and ``target``.

    Whatever the spring's strength, the minimum lies on the profile of ``function``.
    """

    def with_spring(theta_P: Array) -> tuple[Array, Array]:
        residual_R, gradient_RP = residuals(theta_P)
        value, slope_P = function(theta_P)
        root = math.sqrt(stiffness)
        return (
            np.append(residual_R, root * (value - target)),
            np.vstack([gradient_RP, root * slope_P]),
        )

    return with_spring


def _descend(residuals: Callable[[Array], tuple[Array, Array]], theta_P: Array) -> Array:
    damping = 1e-8
    residual_R, gradient_RP = residuals(theta_P)
    error = _squared(residual_R)
    for _ in range(_STEPS):
        scale_P = _scales(gradient_RP)
        damped = np.vstack([gradient_RP / scale_P, math.sqrt(damping) * np.eye(len(theta_P))])
        aim = np.append(-residual_R, np.zeros(len(theta_P)))
        step_P = np.linalg.lstsq(damped, aim, rcond=None)[0] / scale_P
        tried_P = theta_P + step_P
        tried_R, tried_RP = residuals(tried_P)
        tried = _squared(tried_R)
        if tried < error:
            done = error - tried <= 1e-10 * error
            theta_P, residual_R, gradient_RP, error = tried_P, tried_R, tried_RP, tried
            damping = max(damping / 10, 1e-12)
            if done:
                break
        else:
            damping *= 30
            if damping > 1e8:
                break
    return theta_P


def _scales(gradient_RP: Array) -> Array:
    """Return the norm of every column, above 0."""
    scale_P: Array = np.sqrt((gradient_RP**2).sum(0)) + _TINY
    return scale_P


def _squared(residual_R: Array) -> float:
    return float(residual_R @ residual_R) if np.isfinite(residual_R).all() else math.inf


@cache
def student(freedom: int, level: float = 0.95) -> float:
    """Return how many deviations to both sides hold ``level`` of Student's t distribution.

    With ``t = sqrt(freedom) tan(angle)`` the density is ``cos(angle)^(freedom - 1)``, summed here
    in 100,000 steps: within 1e-6 of the table.
    """
    angle = np.linspace(0, math.pi / 2, 100_001)
    density = np.cos(angle) ** (freedom - 1)
    below = np.append(0.0, np.cumsum((density[1:] + density[:-1]) / 2))
    found = float(np.interp(level * below[-1], below, angle))
    return math.sqrt(freedom) * math.tan(found)
