"""From scores to what may be said: intervals per method and kind of edit, paired comparisons, curves of knobs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from adapedit.evaluation.scores import Score
from adapedit.evaluation.statistics import (
    better_and_worse,
    curve_correlation,
    mean_interval,
    paired_comparison,
)
from adapedit.evaluation.studies import Sweep
from adapedit.evaluation.suite import KINDS
from adapedit_kernels.errors import AdapEditError

METRICS = ("success", "kept", "background", "product", "psnr", "moved")
"""Means that are reported; the first four are shares, psnr is in decibels, moved a share of the range of values."""

OF_TRUTH = ("truth_psnr", "truth_ssim")
"""Reported besides where the true edits are known, of drawn sources."""

LEAST = 0.001
"""Of two products: less apart, neither edit is counted as the better one."""

Table = Mapping[str, Sequence[Score]]


def paired(scores: Iterable[Score], variants: Sequence[str]) -> dict[str, list[Score]]:
    """Per variant the scores of the usable cases that all variants have, in one order.

    Whether a case is usable depends on its source picture alone, so it is the same for all variants.
    """
    by_case: dict[str, dict[str, Score]] = defaultdict(dict)
    for score in scores:
        if score.variant in variants:
            by_case[score.case][score.variant] = score
    whole = [found for found in by_case.values() if len(found) == len(variants)]
    usable = [found for found in whole if all(score.verdict.usable for score in found.values())]
    return {variant: [found[variant] for found in usable] for variant in variants}


def make_report(
    scores: Sequence[Score], variants: Sequence[str], sweeps: Sequence[Sweep] = ()
) -> dict[str, Any]:
    """Everything, ready for JSON. Intervals are those of 95 %; the first variant is compared with each other one."""
    table = paired(scores, variants)
    count = len(table[variants[0]])
    cases = len({score.case for score in scores})
    if not count:
        raise AdapEditError(
            f"none of the {cases} cases can be used: the source pictures do not show what their prompts say; "
            "is this a trained model of the scene world, and are there enough steps?"
        )
    kinds = [kind for kind in KINDS if any(score.kind == kind for score in table[variants[0]])]
    groups = {"all": table} | {kind: _only(table, kind) for kind in kinds}
    return {
        "cases": cases,
        "usable": count,
        "groups": {name: _group(part) for name, part in groups.items()},
        "curves": [_curve(table, sweep) for sweep in sweeps],
    }


def metrics_of(table: Table) -> tuple[str, ...]:
    """The metrics that all scores have."""
    known = all(score.verdict.truth_psnr is not None for scores in table.values() for score in scores)
    return (*METRICS, *OF_TRUTH) if known else METRICS


def values(scores: Sequence[Score], metric: str) -> list[float]:
    """One metric of each score."""
    return [float(getattr(score.verdict, metric)) for score in scores]


def _only(table: Table, kind: str) -> Table:
    return {variant: [score for score in scores if score.kind == kind] for variant, scores in table.items()}


def _group(table: Table) -> dict[str, Any]:
    first, *others = table
    return {
        "count": len(table[first]),
        "means": {
            variant: {metric: asdict(mean_interval(values(scores, metric))) for metric in metrics_of(table)}
            for variant, scores in table.items()
        },
        "product against": {
            other: _against(values(table[first], "product"), values(table[other], "product"))
            for other in others
        },
    }


def _against(first: list[float], second: list[float]) -> dict[str, Any]:
    better, worse = better_and_worse(first, second, least=LEAST)
    return {**asdict(paired_comparison(first, second)), "better": better, "worse": worse}


def _curve(table: Table, sweep: Sweep) -> dict[str, Any]:
    labels = [sweep.label(value) for value in sweep.values]
    found: dict[str, Any] = {
        "knob": sweep.knob,
        "values": list(sweep.values),
        "expected sign": sweep.expected,
    }
    found["fixed"] = dict(sweep.fixed)
    for metric in ("success", "moved", "background", "product"):
        scores = np.array([values(table[label], metric) for label in labels]).T
        found[metric] = {
            "means": [asdict(mean_interval(column)) for column in scores.T],
            "rank correlation": asdict(curve_correlation(sweep.values, scores)),
        }
    return found
