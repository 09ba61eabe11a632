"""One edit, stage by stage: `python -m benchmarks.latency`.

Faithful and single-pass as in the paper, and as the model is set, beside what others do for the same pictures:
diffusers' plain loop for both prompts, and the eager controller way with a first pass of its own. Text is encoded and
pictures are decoded in all of them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from adapedit.checked import row_steps
from adapedit.methods import AdapEdit
from benchmarks import common, overhead, parity
from benchmarks.baselines.edits import ROWS, OtherWays

PAPER: dict[str, Any] = {"observed_prompts": "target", "local_blend": ()}
OURS = {
    "faithful": AdapEdit(**PAPER, two_pass=True),
    "single pass": AdapEdit(**PAPER),
    "as the model is set": AdapEdit(),
}


def main() -> None:
    options = common.arguments(__doc__, steps=50, repeats=3).parse_args()
    if options.quick:
        options.steps, options.repeats = 3, 1
    pipe = common.pipeline(options)
    gate = overhead.same_latents(parity.pipelines(options, pipe), options.steps)
    plan, _ = overhead.plans(pipe, options.steps)
    variants, stages = ways(pipe, options.steps)
    times = common.timed(variants, options.repeats, common.waiting(options.device))
    flops = overhead.unet_flops(pipe, plan) / 4
    ceiling = common.matrix_ceiling(options.device, options.dtype)
    rows = {
        name: row_steps(common.request(0, options.steps, method=method), pipe.model) // options.steps
        for name, method in OURS.items()
    } | {"plain (diffusers)": ROWS["plain"], "eager controller": ROWS["eager"]}
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

    def edit(name: str) -> None:
        request = common.request(0, steps, method=OURS[name])
        (result,) = pipe.edit_batch([request])
        stages[name] = {stage: round(seconds, 4) for stage, seconds in result.timings.items()}

    variants = {
        **{name: partial(edit, name) for name in OURS},
        "plain (diffusers)": lambda: others.plain(asked),
        "eager controller": lambda: others.eager(asked),
    }
    return variants, stages


if __name__ == "__main__":
    main()
