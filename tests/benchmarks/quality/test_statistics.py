"""Intervals, tests and correlations against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from adapedit import AdapEditError
from benchmarks.quality.statistics import (
    curve_correlation,
    mean_interval,
    paired_comparison,
    rank_correlation,
)

RNG = np.random.default_rng(5)
NORMAL = RNG.normal(2.0, 3.0, size=400)


def test_the_interval_of_a_mean_is_that_of_the_normal_law() -> None:
    interval = mean_interval(NORMAL)
    half = 1.96 * NORMAL.std(ddof=1) / np.sqrt(len(NORMAL))
    assert interval.value == pytest.approx(NORMAL.mean())
    assert interval.low == pytest.approx(NORMAL.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(NORMAL.mean() + half, abs=0.1 * half)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(100):
        interval = mean_interval(rng.random(60) < 0.4, seed=trial)
        hits += interval.low <= 0.4 <= interval.high
    assert 0.88 <= hits / 100 <= 1


def test_everything_is_seeded() -> None:
    assert mean_interval(NORMAL) == mean_interval(NORMAL) != mean_interval(NORMAL, seed=1)
    assert paired_comparison(NORMAL, NORMAL[::-1]) == paired_comparison(NORMAL, NORMAL[::-1])


def test_a_constant_has_no_width() -> None:
    interval = mean_interval([0.5] * 20)
    assert (interval.value, interval.low, interval.high) == (0.5, 0.5, 0.5)


def test_equal_methods_are_not_told_apart_and_a_shift_is() -> None:
    same = paired_comparison(NORMAL, NORMAL)
    assert same.p_value == 1.0 and same.difference.value == 0
    shifted = paired_comparison(NORMAL + 1, NORMAL)
    assert shifted.p_value < 0.001 and shifted.difference.low > 0


def test_the_permutation_test_is_exact_where_all_signs_can_be_counted() -> None:
    # Six differences of one sign: of the 64 ways to sign them, two are as far from zero.
    comparison = paired_comparison([1.0] * 6, [0.0] * 6)
    assert comparison.p_value == pytest.approx(2 / 64)


def test_p_values_are_uniform_without_an_effect() -> None:
    rng = np.random.default_rng(1)
    found = [paired_comparison(rng.normal(size=30), rng.normal(size=30)).p_value for _ in range(100)]
    assert np.mean(np.array(found) < 0.1) == pytest.approx(0.1, abs=0.08)


def test_correlations_know_order_alone() -> None:
    x = np.arange(9.0)
    assert rank_correlation(x, np.exp(x)) == pytest.approx(1)
    assert rank_correlation(x, -(x**3)) == pytest.approx(-1)
    assert rank_correlation(x, np.ones(9)) == 0


def test_a_curve_that_rises_is_found_under_noise() -> None:
    knob = [0.0, 0.25, 0.5, 0.75, 1.0]
    scores = RNG.random((200, 5)) < np.array([0.2, 0.35, 0.5, 0.65, 0.8])
    rising = curve_correlation(knob, scores)
    assert rising.value == pytest.approx(1) and rising.low > 0.8
    flat = curve_correlation(knob, RNG.random((200, 5)) < 0.5)
    assert flat.low < 0 < flat.high


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [[1.0]]])
def test_what_is_no_sample_is_refused(values: list[float]) -> None:
    with pytest.raises(AdapEditError, match="finite numbers"):
        mean_interval(values)


def test_edits_are_counted_that_are_better_or_worse_by_enough() -> None:
    first, second = [0.9, 0.9, 0.9, 0.0, 0.5], [0.8, 0.9, 0.8995, 0.9, 0.499]
    for one, two, least, counts in (
        (first, second, 0.01, (1, 1)),
        (first, second, 0.0002, (3, 1)),
        (second, first, 0.0002, (1, 3)),
    ):
        found = paired_comparison(one, two, least=least)
        assert (found.better, found.worse) == counts


def test_a_single_edit_is_its_own_interval() -> None:
    assert mean_interval([0.3]).low == mean_interval([0.3]).high == 0.3
    assert paired_comparison([1.0], [0.0]).p_value == 1
    assert curve_correlation([0, 1], [[0.2, 0.4]]).low == pytest.approx(1)


def test_pairs_that_do_not_match_are_refused() -> None:
    with pytest.raises(AdapEditError, match="got 2 and 3"):
        paired_comparison([1, 2], [1, 2, 3])
    with pytest.raises(AdapEditError, match=r"wanted scores \[edits, 3\]"):
        curve_correlation([1, 2, 3], [[1, 2]])
