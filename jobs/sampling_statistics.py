"""From scored answers to numbers: pass@k without bias, and how sure a mean over problems is."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of P(at least one of k answers is right) from c right of n drawn (arXiv 2107.03374, Eq. 1).

    Raises ValueError where k > n: it cannot be estimated from fewer answers.
    """
    if k > n:
        raise ValueError(f"pass@{k} needs at least {k} answers a problem, got {n}")
    return 1.0 - comb(n - c, k) / comb(n, k)


def bootstrap_interval(
    *sets: Sequence[float], level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean over problems; of several sets, of the unweighted mean of their means.

    sets: a value a problem each; problems are drawn again within each set. The same input gives the same interval.
    """
    generator = np.random.default_rng(seed)
    means = np.zeros(resamples)
    for values in sets:
        array = np.asarray(values, dtype=np.float64)
        # a block of resamples at a time: memory does not grow with their number
        for start in range(0, resamples, 200):
            drawn = generator.integers(0, len(array), (min(200, resamples - start), len(array)))
            means[start : start + 200] += array[drawn].mean(1)
    means /= len(sets)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
