"""What each opt-in approximation loses on the scene suite, and what it saves: `python -m benchmarks.approximations`.

Every approximation edits the same cases as the exact edit, in turn with it, so that a noisy machine is fair to all.
Loss is the exact edit's product (success * kept * background) minus its own, over the cases whose source picture is
usable in both, with the paired bootstrap interval. Values were chosen on the development half (`--half development`,
which sweeps); the test half reports those that are suggested. Needs the built-in model and its reader.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from adapedit import AdapEditPipeline, EditRequest
from adapedit.methods.settings import AdapEdit
from benchmarks import common
from benchmarks.quality.judge import Judge
from benchmarks.quality.statistics import mean_interval, paired_comparison
from benchmarks.quality.suite import scene_suite
from benchmarks.scenes.reader import load_reader

BATCH = 4
EXACT = "exact"
SINGLE = {"method": AdapEdit(single_pass=True)}

SWEEP: dict[str, dict[str, Any]] = {
    **{f"guidance_until={u}": {"guidance_until": u} for u in (0.8, 0.6, 0.4)},
    **{f"cross_attention_until={u}": {"cross_attention_until": u} for u in (0.8, 0.6, 0.4)},
    "both until 0.6": {"guidance_until": 0.6, "cross_attention_until": 0.6},
    "both until 0.4": {"guidance_until": 0.4, "cross_attention_until": 0.4},
    **{f"feature_interval={k}": {"feature_interval": k} for k in (2, 3, 5)},
    **{f"{n} steps": {"num_inference_steps": n} for n in (25, 20, 10)},
    **{f"{n} steps, solver=dpm++": {"num_inference_steps": n, "solver": "dpm++"} for n in (25, 20, 10)},
    "single_pass": SINGLE,
}
"""Each alone, at several values."""

SUGGESTED: dict[str, dict[str, Any]] = {
    name: SWEEP[name]
    for name in (
        "guidance_until=0.6",
        "cross_attention_until=0.6",
        "both until 0.6",
        "feature_interval=3",
        "20 steps",
        "20 steps, solver=dpm++",
        "single_pass",
    )
} | {
    "single_pass, feature_interval=3": {**SINGLE, "feature_interval": 3},
    "20 steps, solver=dpm++, feature_interval=2": {
        "num_inference_steps": 20,
        "solver": "dpm++",
        "feature_interval": 2,
    },
}
"""Each at one value, and those together that save most."""


@dataclass(kw_only=True)
class Found:
    """One approximation over the cases so far. products: None where the source picture is not usable."""

    pipe: Any
    fields: Mapping[str, Any]
    seconds: float = 0.0
    processor: float = 0.0
    products: list[float | None] = field(default_factory=list)
    differences: list[tuple[int, float]] = field(default_factory=list)


def main() -> None:
    parser = common.arguments(__doc__, steps=50, limit=48, half="test")
    parser.add_argument("--dtypes", default="bfloat16", help="further dtypes of the weights, or none")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.limit = 4, 2
    pipe = common.pipeline(options)
    named = SWEEP if options.half == "development" else SUGGESTED
    found = {EXACT: Found(pipe=pipe, fields={})}
    found |= {name: Found(pipe=pipe, fields=fields) for name, fields in named.items()}
    for dtype in options.dtypes.replace("none", "").split(","):
        if dtype:
            found[f"{dtype} weights"] = Found(pipe=in_dtype(options, dtype), fields={})
    cases = scene_suite(options.half, options.limit)
    judge = Judge(load_reader())
    for (
        one
    ) in found.values():  # what is done once, such as reading a schedule off its scheduler, is not measured
        edited(one, cases[:1], options.steps)
    for start in range(0, len(cases), BATCH):
        measure(found, cases[start : start + BATCH], judge, options.steps)
    rows = {name: summary(one, found[EXACT]) for name, one in found.items()}
    common.write(
        "approximations", options, {"cases": len(cases), "half": options.half, "approximations": rows}
    )


def in_dtype(options: argparse.Namespace, dtype: str) -> Any:
    """The same model with weights and activations of another dtype."""
    return AdapEditPipeline.from_pretrained(
        options.model, device=options.device, torch_dtype=getattr(torch, dtype)
    )


def edited(one: Found, cases: Sequence[Any], steps: int) -> list[Any]:
    """The cases edited together."""
    requests = [
        EditRequest(
            **{
                "source_prompt": case.source_prompt,
                "target_prompt": case.target_prompt,
                "seed": case.seed,
                "num_inference_steps": steps,
                **one.fields,
            }
        )
        for case in cases
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(one.pipe.edit_batch(requests))


def measure(found: Mapping[str, Found], cases: Sequence[Any], judge: Any, steps: int) -> None:
    """Edit some cases by all, one after the other, and judge what came out."""
    exact: list[Any] = []
    for one in found.values():
        processor, began = time.process_time(), time.perf_counter()
        results = edited(one, cases, steps)
        one.seconds += time.perf_counter() - began
        one.processor += time.process_time() - processor
        exact = exact or results
        for case, result, reference in zip(cases, results, exact, strict=True):
            view = judge.view(case, result.source_image)
            (verdict,) = judge.verdicts(view, [result.target_image])
            one.products.append(verdict.product if verdict.usable else None)
            pair = (result.target_image, reference.target_image)
            apart = np.abs(np.subtract(*(np.asarray(image, np.int16) for image in pair)))
            one.differences.append((int(apart.max()), float(apart.mean())))


def summary(one: Found, exact: Found) -> dict[str, Any]:
    """A row of the table. Speed-ups are by the wall clock, and by the process's time on all cores."""
    both = [
        (ours, theirs)
        for ours, theirs in zip(one.products, exact.products, strict=True)
        if ours is not None and theirs is not None
    ]
    row: dict[str, Any] = {
        "speed_up": round(exact.seconds / one.seconds, 3),
        "speed_up_processor": round(exact.processor / one.processor, 3),
        "seconds_an_edit": round(one.seconds / len(one.products), 4),
        "usable": sum(product is not None for product in one.products),
        "compared": len(both),
        "grey_levels": {
            "largest": max(largest for largest, _ in one.differences),
            "mean": round(float(np.mean([mean for _, mean in one.differences])), 3),
        },
    }
    if not both:
        return {**row, "product": None, "loss": None}
    ours, theirs = zip(*both, strict=True)
    loss = paired_comparison(theirs, ours).difference
    row["product"] = round(mean_interval(ours).value, 4)
    row["loss"] = {name: round(getattr(loss, name), 4) for name in ("value", "low", "high")}
    return row


if __name__ == "__main__":
    main()
