"""Intervals: 95 % percentile bootstrap over episodes (Efron 1979, doi:10.1214/aos/1176344552).

Every policy meets the same episodes, so one resample of the episodes serves all policies and differences are paired.
"""

from typing import NamedTuple

import numpy as np

RESAMPLES = 2000


class Estimate(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


NONE = Estimate(float("nan"), float("nan"), float("nan"))


def resampled_means(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(RESAMPLES, P) bootstrap means of (E, P) paired samples: the same resample for every policy."""
    n = len(samples)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float32) / n
    return weights @ samples.astype(np.float32)


def estimate(value: float, resamples: np.ndarray) -> Estimate:
    """A value with the percentile interval of its resamples."""
    low, high = np.percentile(resamples, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high))
