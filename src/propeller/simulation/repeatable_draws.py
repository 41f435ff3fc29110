"""Random numbers that are the same for a seed on every machine and with every version of NumPy, as far as that can be.

NumPy promises the stream of integers of its bit generators, and of ``SeedSequence`` that seeds them, for all versions ("PCG64
makes a guarantee that a fixed seed will always produce the same random integer stream"), but not what the methods of
``Generator`` make of them: ``permutation`` and ``dirichlet`` may give something else after an update (NEP 19). So
everything here is made of ``PCG64.random_raw``:

- permutations are the order of random 64-bit integers, and uniform numbers their upper 53 bits: exact everywhere.
- Gamma and Dirichlet variates go through logarithms and exponentials, whose last bit may differ between machines. Where
  whole samples are counted by them, that matters only if a share falls within a rounding error of a whole number.
"""

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class RepeatableDraws:
    """A stream of random numbers; each call goes on where the last one ended."""

    def __init__(self, *seeds: int) -> None:
        """Begin the stream of these seeds, whole numbers of 0 or more."""
        self._bits = np.random.PCG64(np.random.SeedSequence(seeds))

    def keys(self, count: int) -> npt.NDArray[np.uint64]:
        """Integers from 0 to 2^64 - 1, of shape [count]."""
        return np.asarray(self._bits.random_raw(count), np.uint64)

    def uniforms(self, count: int) -> Floats:
        """Numbers from 0 to below 1, of shape [count]."""
        return (self.keys(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def permutation(self, count: int) -> Integers:
        """The numbers below ``count`` in a random order."""
        return np.argsort(self.keys(count), kind="stable").astype(np.int64, copy=False)

    def normals(self, count: int) -> Floats:
        """Standard normal numbers, of shape [count] (Box and Muller 1958)."""
        radius = np.sqrt(-2 * np.log(1 - self.uniforms(count)))
        found: Floats = radius * np.cos(2 * math.pi * self.uniforms(count))
        return found

    def log_gammas(self, shapes: Floats) -> Floats:
        """Logarithms of Gamma variates with scale 1, of the shape of ``shapes``, which are each variate's parameter.

        Marsaglia and Tsang 2000: section 2 for parameters of 1 or more, section 6 for those below. In logarithms, as a
        variate with a small parameter is often below the smallest float.
        """
        wanted = np.ravel(shapes)
        raised = np.where(wanted < 1, wanted + 1, wanted)
        d = raised - 1 / 3
        c = 1 / np.sqrt(9 * d)
        found = np.empty(len(wanted))
        pending = np.arange(len(wanted))
        while len(pending):
            x, u = self.normals(len(pending)), 1 - self.uniforms(len(pending))
            scale = d[pending]
            v = (1 + c[pending] * x) ** 3
            log_v = np.log(np.where(v > 0, v, 1))
            accepted = (v > 0) & (np.log(u) < x * x / 2 + scale * (1 - v + log_v))
            found[pending[accepted]] = np.log(scale[accepted]) + log_v[accepted]
            pending = pending[~accepted]
        small = wanted < 1
        found[small] += np.log(1 - self.uniforms(int(small.sum()))) / wanted[small]
        return found.reshape(np.shape(shapes))

    def dirichlets(self, concentrations: Floats) -> Floats:
        """Shares that sum to 1 in each row, for ``concentrations`` of shape [rows, parts]; one Dirichlet variate a row."""
        logs = self.log_gammas(concentrations)
        shares = np.exp(logs - logs.max(axis=1, keepdims=True))
        found: Floats = shares / shares.sum(axis=1, keepdims=True)
        return found
