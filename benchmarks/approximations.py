"""What each opt-in approximation loses on the scene suite, and what it saves: `python -m benchmarks.approximations`.

Off by default, one name each: guidance_until=0.6, single_pass=True, fewer num_inference_steps, --dtype bfloat16. Each
is judged on the same cases as the exact edit; a dtype is a run of its own. Needs the built-in model and its reader.
"""

from __future__ import annotations

import statistics
import time
import warnings
from typing import Any

from adapedit import EditRequest
from adapedit.evaluation.scores import judge_with
from adapedit.evaluation.suite import scene_suite
from adapedit.methods.settings import AdapEdit
from benchmarks import common

BATCH = 8


def main() -> None:
    options = common.arguments(__doc__, steps=50, cases=48).parse_args()
    if options.quick:
        options.steps, options.cases = 4, 2
    pipe, judge, cases = common.pipeline(options), judge_with(None), scene_suite(limit=options.cases)
    named: dict[str, dict[str, Any]] = {
        "exact": {},
        "guidance_until=0.8": {"guidance_until": 0.8},
        "guidance_until=0.6": {"guidance_until": 0.6},
        "single_pass": {"method": AdapEdit(single_pass=True)},
        "half the steps": {"num_inference_steps": options.steps // 2},
        "single_pass, guidance_until=0.6": {
            "method": AdapEdit(single_pass=True),
            "guidance_until": 0.6,
        },
    }
    found = {name: measure(pipe, judge, cases, options.steps, fields) for name, fields in named.items()}
    for result in found.values():
        result["speed_up"] = round(found["exact"]["seconds_an_edit"] / result["seconds_an_edit"], 3)
        if result["product"] is not None and found["exact"]["product"] is not None:
            result["loss"] = round(found["exact"]["product"] - result["product"], 4)
    common.write("approximations", options, {"cases": len(cases), "approximations": found})


def measure(pipe: Any, judge: Any, cases: Any, steps: int, fields: dict[str, Any]) -> dict[str, Any]:
    """The mean score of the usable cases, and seconds an edit in batches."""
    products, seconds = [], 0.0
    for start in range(0, len(cases), BATCH):
        some = cases[start : start + BATCH]
        requests = [
            EditRequest(
                **{
                    "source_prompt": case.source_prompt,
                    "target_prompt": case.target_prompt,
                    "seed": case.seed,
                    "num_inference_steps": steps,
                    **fields,
                }
            )
            for case in some
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            began = time.perf_counter()
            results = pipe.edit_batch(requests)
            seconds += time.perf_counter() - began
        for case, result in zip(some, results, strict=True):
            view = judge.view(case, result.source_image)
            if view.usable:
                products.append(judge.verdicts(view, [result.target_image])[0].product)
    return {
        "product": round(statistics.fmean(products), 4) if products else None,
        "usable": len(products),
        "seconds_an_edit": round(seconds / len(cases), 4),
    }


if __name__ == "__main__":
    main()
