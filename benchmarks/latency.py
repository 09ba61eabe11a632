"""One edit, stage by stage: `python -m benchmarks.latency`.

Faithful and single-pass, beside what others do for the same pictures: diffusers' plain loop for both prompts, and the
eager controller way with a first pass of its own. Text is encoded and pictures are decoded in all of them.
"""

from __future__ import annotations

from typing import Any

from adapedit.methods.settings import AdapEdit
from benchmarks import common, overhead
from benchmarks.baselines.edits import OtherWays


def main() -> None:
    options = common.arguments(__doc__, steps=50, repeats=3).parse_args()
    if options.quick:
        options.steps, options.repeats = 3, 1
    pipe = common.pipeline(options)
    plan, _ = overhead.plans(pipe, options.steps)
    _, outputs = overhead.loops(pipe, plan, min(options.steps, 5) if options.quick else options.steps)
    gate = overhead.check(outputs())
    variants, stages = ways(pipe, options.steps)
    times = common.timed(variants, options.repeats, common.waiting(options.device))
    flops = overhead.unet_flops(pipe, plan) / 4
    ceiling = common.matrix_ceiling(options.device, options.dtype)
    rows = {"faithful": 6, "single pass": 4, "plain (diffusers)": 4, "eager controller": 6}
    for name, seconds in times.items():
        rate = flops * rows[name] * options.steps / seconds["least_s"]
        seconds |= {
            "rows_a_step": rows[name],
            "flops_per_s": rate,
            "share_of_ceiling": round(rate / ceiling, 3),
        }
    common.write(
        "latency",
        options,
        {
            "parity": gate,
            "times": times,
            "stages_s": stages,
            "eager_over_faithful": round(
                times["eager controller"]["least_s"] / times["faithful"]["least_s"], 3
            ),
            "ceiling_flops_per_s": ceiling,
        },
    )


def ways(pipe: Any, steps: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Whole edits, from prompts to pictures; `stages` is filled in as they run."""
    stages, others = dict[str, Any](), OtherWays(pipe)
    asked = common.request(0, steps)

    def edit(name: str, single_pass: bool) -> None:
        request = common.request(0, steps, method=AdapEdit(single_pass=single_pass))
        (result,) = pipe.edit_batch([request])
        stages[name] = {stage: round(seconds, 4) for stage, seconds in result.timings.items()}

    variants = {
        "faithful": lambda: edit("faithful", False),
        "single pass": lambda: edit("single pass", True),
        "plain (diffusers)": lambda: others.plain(asked),
        "eager controller": lambda: others.eager(asked),
    }
    return variants, stages


if __name__ == "__main__":
    main()
