"""What a sample of edits allows to be said: bootstrap intervals, paired tests, rank correlations. All of it seeded."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import ConstantInputWarning, bootstrap, permutation_test, spearmanr

from adapedit import AdapEditError

SAMPLES, CURVE_SAMPLES = 2000, 500
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Mean of first minus second over the same edits, and how often chance alone does as much (two-sided).

    better, worse: in how many edits the first is ahead or behind by more than a given least. A mean hangs on the few
    edits that one has and the other loses; these count what happens to the rest.
    """

    difference: Interval
    p_value: float
    better: int
    worse: int


def mean_interval(values: ArrayLike, *, seed: int = 0) -> Interval:
    """Mean with its percentile bootstrap interval; of a single value, that value."""
    numbers = _numbers(values)
    value = float(numbers.mean())
    if len(numbers) == 1:
        return Interval(value, value, value)
    found = bootstrap(
        (numbers,), np.mean, n_resamples=SAMPLES, confidence_level=LEVEL, method="percentile", rng=seed
    ).confidence_interval
    return Interval(value, float(found.low), float(found.high))


def paired_comparison(first: ArrayLike, second: ArrayLike, *, least: float = 0, seed: int = 0) -> Comparison:
    """Compare two methods over the same edits, in the same order, by the sign-flip permutation test."""
    one, two = _numbers(first), _numbers(second)
    if one.shape != two.shape:
        raise AdapEditError(
            f"a paired comparison wants as many values of both, got {len(one)} and {len(two)}"
        )
    differences, p_value = one - two, 1.0
    if len(one) > 1:
        p_value = permutation_test(
            (one, two), lambda a, b, axis: (a - b).mean(axis), permutation_type="samples", vectorized=True,
            n_resamples=SAMPLES, rng=seed,
        ).pvalue  # fmt: skip
    return Comparison(
        difference=mean_interval(differences, seed=seed),
        p_value=float(p_value),
        better=int((differences > least).sum()),
        worse=int((differences < -least).sum()),
    )


def rank_correlation(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rho; 0 where one side has one value only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        return float(np.nan_to_num(spearmanr(x, y).statistic))


def curve_correlation(knob: Sequence[float], scores: ArrayLike, *, seed: int = 0) -> Interval:
    """Does the mean score rise with a knob? Spearman's rho of the curve, its interval over edits.

    knob: V values; scores: [edits, V], every edit at every value. Edits are drawn whole, each with its curve.
    """
    table = np.asarray(scores, dtype=float)
    if table.ndim != 2 or table.shape[1] != len(knob):
        raise AdapEditError(
            f"wanted scores [edits, {len(knob)}] for {len(knob)} knob values, got {table.shape}"
        )
    _numbers(table.ravel())

    def rho(*columns: NDArray[np.float64]) -> float:
        return rank_correlation(knob, [column.mean() for column in columns])

    value = rho(*table.T)
    if len(table) == 1:
        return Interval(value, value, value)
    found = bootstrap(
        tuple(table.T), rho, paired=True, vectorized=False, n_resamples=CURVE_SAMPLES, confidence_level=LEVEL,
        method="percentile", rng=seed,
    ).confidence_interval  # fmt: skip
    return Interval(value, float(found.low), float(found.high))


def _numbers(values: ArrayLike) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=float)
    if numbers.ndim != 1 or not numbers.size or not np.isfinite(numbers).all():
        raise AdapEditError(f"wanted one or more finite numbers in a row, got {numbers.shape} of them")
    return numbers
