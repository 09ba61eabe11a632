"""From scores of pairs to what may be said: a mean with its interval per method and figure, and paired comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from adapedit.evaluation.protocol.scores import PairScore
from adapedit.evaluation.statistics import mean_interval, paired_comparison

Table = Mapping[str, Sequence[PairScore]]
"""Per variant the scores of the pairs that all variants have, in one order."""


def make_report(table: Table, columns: Sequence[str]) -> dict[str, Any]:
    """Ready for JSON. Intervals are those of 95 % over pairs; the first variant is compared with each other one."""
    first, *others = table
    return {
        "means": {
            variant: {column: asdict(mean_interval(values(scores, column))) for column in columns}
            for variant, scores in table.items()
        },
        "against": {
            other: {
                column: asdict(paired_comparison(values(table[first], column), values(table[other], column)))
                for column in columns
            }
            for other in others
        },
    }


def values(scores: Sequence[PairScore], column: str) -> list[float]:
    """One figure of each score."""
    return [score.figures[column] for score in scores]
