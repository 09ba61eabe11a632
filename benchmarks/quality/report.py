"""What scores allow to be said, in one form for all runs: means with intervals, paired comparisons, curves of knobs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from adapedit import AdapEditError
from benchmarks.quality.statistics import curve_correlation, mean_interval, paired_comparison
from benchmarks.quality.studies import Study, Sweep
from benchmarks.quality.suite import KINDS, PROMPTS

LEAST = 0.001
"""Of two figures: less apart, neither edit is counted as the better one."""

SHARES = ("success", "kept", "identity", "well_drawn", "background", "product")
COLUMNS_OF_SCENES = (*SHARES, "psnr", "moved")
OF_TRUTH = ("truth_psnr", "truth_ssim")
"""Reported besides where the true edits are known, of drawn sources."""

Table = Mapping[str, Mapping[str, Sequence[float]]]
"""Per variant and column the figures of the same edits, in one order."""


@dataclass(frozen=True)
class Column:
    """A figure of merit. better: +1 where more is better, -1 where less is; 0: neither."""

    title: str
    better: int
    digits: int
    meaning: str


COLUMNS = {
    "success": Column("success", 1, 3, "share of edits whose new words the reader sees where they belong"),
    "kept": Column("kept", 1, 3, "share in which everything else reads as in the source"),
    "identity": Column("identity", 1, 3, "share in which the figures stand where they stood"),
    "well_drawn": Column("well drawn", 1, 3, "share in which source and edit are near a true drawing"),
    "background": Column("background", 1, 3, "SSIM to the source where the true edit changes nothing"),
    "product": Column("product", 1, 3, "all of these together, times background; methods are ranked by it"),
    "psnr": Column("PSNR", 1, 1, "decibels to the source where nothing may change, at most 60"),
    "moved": Column("moved", 0, 3, "root mean square difference to the source over the whole picture"),
    "truth_psnr": Column("PSNR to the truth", 1, 1, "decibels to the true edited picture"),
    "truth_ssim": Column("SSIM to the truth", 1, 3, "structural similarity to the true edited picture"),
    "seconds": Column(
        "seconds", -1, 1, "of an edit that changes nothing, for each of those that ran together"
    ),
    "ssim": Column("SSIM", 1, 4, "structural similarity to the drawing"),
    "lpips": Column("LPIPS", -1, 3, "perceptual distance of source and edited picture (Zhang et al. 2018)"),
    "clip_score": Column("CLIP score", 1, 2, "100 times the cosine of edited picture and target prompt"),
    "clip_directional": Column(
        "CLIP directional", 1, 3, "cosine of the changes of picture and prompt; 0 where nothing changed"
    ),
    "clip_image": Column("CLIP image", 0, 3, "cosine of source and edited picture; a copy has 1"),
}
"""All figures by name."""


def group(table: Table, compared: Sequence[str]) -> dict[str, Any]:
    """Means of all columns, and the first variant compared with each other one by the columns `compared`."""
    first, *others = table
    return {
        "count": len(next(iter(table[first].values()))),
        "means": {
            variant: {name: asdict(mean_interval(values)) for name, values in columns.items()}
            for variant, columns in table.items()
        },
        "against": {
            other: {
                name: asdict(paired_comparison(table[first][name], table[other][name], least=LEAST))
                for name in compared
            }
            for other in others
        },
    }


def paired(scores: Iterable[Any], variants: Sequence[str]) -> dict[str, list[Any]]:
    """Per variant the scores of the usable cases that all variants have, in one order.

    Whether a case is usable depends on its source picture alone, so it is the same for all variants.
    """
    by_case: dict[str, dict[str, Any]] = defaultdict(dict)
    for score in scores:
        by_case[score.case][score.variant] = score
    whole = [found for found in by_case.values() if all(variant in found for variant in variants)]
    usable = [found for found in whole if all(found[variant].usable for variant in variants)]
    return {variant: [found[variant] for found in usable] for variant in variants}


def scenes_report(scores: Sequence[Any], study: Study) -> dict[str, Any]:
    """Groups of all edits, of each kind, of full and of open prompts, and the study's curves; ready for JSON."""
    scores_of = paired(scores, list(study.variants))
    first = next(iter(scores_of.values()))
    cases = len({score.case for score in scores})
    if not first:
        raise AdapEditError(
            f"none of the {cases} cases can be used: the source pictures do not show what their prompts say; "
            "is this a trained model of the scene world, and are there enough steps?"
        )
    names = COLUMNS_OF_SCENES + (OF_TRUTH if first[0].truth_psnr is not None else ())

    def table(part: str | None) -> Table:
        chosen = {v: [s for s in some if part in (None, s.kind, s.prompts)] for v, some in scores_of.items()}
        return {
            v: {name: [float(getattr(s, name)) for s in some] for name in names} for v, some in chosen.items()
        }

    parts = [p for p in (*KINDS, *PROMPTS) if any(p in (score.kind, score.prompts) for score in first)]
    return {
        "cases": cases,
        "usable": len(first),
        "columns": list(names),
        "groups": {part or "all": group(table(part), ["product"]) for part in (None, *parts)},
        "curves": [_curve(table(None), sweep) for sweep in study.sweeps],
    }


def _curve(table: Table, sweep: Sweep) -> dict[str, Any]:
    found: dict[str, Any] = {
        "knob": sweep.knob,
        "values": list(sweep.values),
        "expected sign": sweep.expected,
        "fixed": dict(sweep.fixed),
    }
    for name in ("success", "moved", "background", "product"):
        scores = np.array([table[sweep.label(value)][name] for value in sweep.values]).T
        found[name] = {
            "means": [asdict(mean_interval(column)) for column in scores.T],
            "rank correlation": asdict(curve_correlation(sweep.values, scores)),
        }
    return found
