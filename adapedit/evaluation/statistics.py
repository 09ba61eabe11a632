"""What a sample of edits allows to be said: bootstrap intervals, paired tests, rank correlations. All of it seeded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adapedit_kernels.errors import AdapEditError

SAMPLES = 2000
LEVEL = 0.95


class StatisticsError(AdapEditError):
    """Numbers that nothing can be said about: none, not finite, or pairs that do not match."""


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its interval."""

    value: float
    low: float
    high: float

    @property
    def away_from_zero(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Comparison:
    """Mean of first minus second over the same edits, and how often chance alone does as much (two-sided)."""

    difference: Interval
    p_value: float


def mean_interval(
    values: ArrayLike, *, samples: int = SAMPLES, level: float = LEVEL, seed: int = 0
) -> Interval:
    """Mean with its percentile bootstrap interval."""
    numbers = _checked(values)
    draws = np.random.default_rng(seed).integers(len(numbers), size=(samples, len(numbers)))
    return _interval(float(numbers.mean()), numbers[draws].mean(1), level)


def paired_comparison(
    first: ArrayLike, second: ArrayLike, *, samples: int = SAMPLES, level: float = LEVEL, seed: int = 0
) -> Comparison:
    """Compare two methods over the same edits, in the same order.

    The interval is the bootstrap's over edits; the p-value is that of the sign-flip permutation test, with the
    observed signs counted among the draws, so it is never 0.
    """
    differences = _differences(first, second)
    signs = np.random.default_rng((seed, 1)).choice((-1.0, 1.0), size=(samples, len(differences)))
    chance = np.abs((signs * differences).mean(1))
    # Sums of the same numbers in another order may differ in the last place.
    reached = chance >= abs(differences.mean()) - 1e-12
    interval = mean_interval(differences, samples=samples, level=level, seed=seed)
    return Comparison(difference=interval, p_value=float((1 + reached.sum()) / (1 + samples)))


def better_and_worse(first: ArrayLike, second: ArrayLike, *, least: float) -> tuple[int, int]:
    """In how many edits the first is ahead of the second by more than `least`, and in how many behind.

    A mean of products hangs on the few edits that one has and the other loses; this counts what happens to the rest.
    """
    differences = _differences(first, second)
    return int((differences > least).sum()), int((differences < -least).sum())


def ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of theirs."""
    numbers = np.asarray(values, dtype=float)
    _, place, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]


def rank_correlation(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rho; 0 where one side has one value only."""
    one, two = _checked(x), _checked(y)
    if one.shape != two.shape:
        raise StatisticsError(f"a correlation wants as many values of both, got {len(one)} and {len(two)}")
    a, b = ranks(one) - (len(one) + 1) / 2, ranks(two) - (len(two) + 1) / 2
    size = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / size if size else 0.0


def rank_correlation_interval(
    x: ArrayLike, y: ArrayLike, *, samples: int = SAMPLES, level: float = LEVEL, seed: int = 0
) -> Interval:
    """Spearman's rho of pairs, with its bootstrap interval over the pairs."""
    one, two = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    value = rank_correlation(one, two)
    draws = np.random.default_rng(seed).integers(len(one), size=(samples, len(one)))
    return _interval(value, [rank_correlation(one[draw], two[draw]) for draw in draws], level)


def curve_correlation(
    knob: Sequence[float],
    scores: ArrayLike,
    *,
    samples: int = SAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Does the mean score rise with a knob? Spearman's rho of the curve, its interval over edits.

    knob: V values; scores: [edits, V], every edit at every value. Edits are drawn whole, each with its curve.
    """
    table = np.asarray(scores, dtype=float)
    if table.ndim != 2 or table.shape[1] != len(knob):
        raise StatisticsError(
            f"wanted scores [edits, {len(knob)}] for {len(knob)} knob values, got {table.shape}"
        )
    _checked(table.ravel())
    value = rank_correlation(knob, table.mean(0))
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(table), np.full(len(table), 1 / len(table)), size=samples)
    curves = weights @ table / len(table)
    return _interval(value, [rank_correlation(knob, curve) for curve in curves], level)


def _differences(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    one, two = _checked(first), _checked(second)
    if one.shape != two.shape:
        raise StatisticsError(
            f"a paired comparison wants as many values of both, got {len(one)} and {len(two)}"
        )
    return one - two


def _interval(value: float, drawn: ArrayLike, level: float) -> Interval:
    low, high = np.quantile(np.asarray(drawn), ((1 - level) / 2, (1 + level) / 2))
    return Interval(value, float(low), float(high))


def _checked(values: ArrayLike) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=float)
    if numbers.ndim != 1 or not numbers.size or not np.isfinite(numbers).all():
        raise StatisticsError(f"wanted one or more finite numbers in a row, got {numbers.shape} of them")
    return numbers
