"""Tridiagonal systems: multiply, factor once, solve often, all O(N). N sites, R right sides.

In numpy and LAPACK, on the CPU: for monitors and tests, which no gradient passes through.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bkray.errors import ConfigError

Array = NDArray[Any]
FEWEST_SITES = 3
"""Which LAPACK's wrapper takes; shorter chains get sites that nothing is coupled to."""


class Tridiagonal(NamedTuple):
    """A matrix with three diagonals, real or complex: (N - 1,), (N,) and (N - 1,)."""

    lower: Array
    diagonal: Array
    upper: Array

    def times(self, x: Array) -> Array:
        """Return the product with ``x``, (N,) or (N, R)."""
        image = (self.diagonal * x.T).T
        image[1:] += (self.lower * x[:-1].T).T
        image[:-1] += (self.upper * x[1:].T).T
        return image

    def factored(self) -> "Factored":
        """Return the LU factors with row exchanges; a NaN stays one.

        Raises:
            ConfigError: the matrix is singular.
        """
        from scipy.linalg.lapack import get_lapack_funcs  # slow to import, and seldom needed

        missing = max(0, FEWEST_SITES - len(self.diagonal))
        lower, upper = (np.pad(side, (0, missing)) for side in (self.lower, self.upper))
        diagonal = np.pad(self.diagonal, (0, missing), constant_values=1)
        factor, solve = get_lapack_funcs(("gttrf", "gttrs"), (lower, diagonal, upper))
        *factors, singular = factor(lower, diagonal, upper)
        if singular:
            raise ConfigError(f"the chain is singular at site {singular - 1}: shift its energy")
        return Factored(len(self.diagonal), tuple(factors), solve)


class Factored(NamedTuple):
    """A tridiagonal matrix of ``n_sites``, ready to be solved with."""

    n_sites: int
    factors: tuple[Array, ...]
    routine: Any

    def solve(self, b: Array, *, adjoint: bool = False) -> Array:
        """Return ``x`` with ``A x = b``, or ``A* x = b``; ``b`` is (N,) or (N, R)."""
        missing = len(self.factors[1]) - self.n_sites
        padded = np.pad(b, [(0, missing), *[(0, 0)] * (b.ndim - 1)])
        x, _ = self.routine(*self.factors, padded, trans="C" if adjoint else "N")
        return x[: self.n_sites]  # type: ignore[no-any-return]  # LAPACK's hands out arrays
