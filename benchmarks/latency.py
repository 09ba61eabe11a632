"""One edit, stage by stage: `python -m benchmarks.latency`.

Faithful and single-pass, beside what others do for the same pictures: diffusers' plain loop for both prompts, and the
eager controller way with a first pass of its own. Text is encoded and pictures are decoded in all of them.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from adapedit.methods.settings import AdapEdit
from benchmarks import common, overhead
from benchmarks.baselines.plain import plain_loop


def main() -> None:
    options = common.arguments(__doc__, steps=50, repeats=3).parse_args()
    if options.quick:
        options.steps, options.repeats = 3, 1
    pipe = common.pipeline(options)
    variants, stages = ways(pipe, options.steps)
    plan, _ = overhead.plans(pipe, options.steps)
    loops, outputs = overhead.loops(pipe, plan, min(options.steps, 5) if options.quick else options.steps)
    gate = overhead.check(outputs())
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
            "loops": sorted(loops),
        },
    )


def ways(pipe: Any, steps: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Whole edits, from prompts to pictures; `stages` is filled in as they run."""
    model, stages = pipe.model, dict[str, Any]()
    unet = copy.deepcopy(model.runner.controlled.unet)

    def edit(name: str, single_pass: bool) -> None:
        request = common.request(0, steps, method=AdapEdit(single_pass=single_pass))
        (result,) = pipe.edit_batch([request])
        stages[name] = {stage: round(seconds, 4) for stage, seconds in result.timings.items()}

    def prepared() -> tuple[Any, Any]:
        from adapedit.prepare import complete, make_context

        context = make_context(complete(common.request(0, steps), model), model)
        text = torch.stack([context.unconditional] * 2 + [context.source, context.target])
        return context, text.to(unet.device, unet.dtype)

    def plain() -> None:
        context, text = prepared()
        latents = context.latents.expand(2, -1, -1, -1).to(unet.device, unet.dtype)
        model.decode(plain_loop(unet, model.scheduler, latents, text, context.guidance_scale, steps))

    def eager() -> None:
        from benchmarks.baselines.eager import Controller, controlled

        context, text = prepared()
        latents = context.latents.to(unet.device, unet.dtype)
        specs, tokens = model.runner.specs, model.max_tokens
        for count, prompts in ((1, text[[0, 3]]), (2, text)):
            controller = Controller(
                layers=len(specs.self_layers) + len(specs.cross_layers),
                steps=steps,
                token_map=torch.eye(tokens, device=unet.device, dtype=unet.dtype),
                own_weight=torch.zeros(tokens, device=unet.device, dtype=unet.dtype),
                word_steps=torch.full((tokens,), 0.8, device=unet.device),
                self_steps=0.4,
                self_pixels=latents[0, 0].numel() // model.facts.self_divisor**2,
                prompts=count,
            )
            with controlled(unet, controller):
                start = latents.expand(count, -1, -1, -1)
                out = plain_loop(unet, model.scheduler, start, prompts, context.guidance_scale, steps)
        model.decode(out)

    variants = {
        "faithful": lambda: edit("faithful", False),
        "single pass": lambda: edit("single pass", True),
        "plain (diffusers)": plain,
        "eager controller": eager,
    }
    return variants, stages


if __name__ == "__main__":
    main()
