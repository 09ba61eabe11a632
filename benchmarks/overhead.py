"""What editing costs over plain generation of the same rows: `python -m benchmarks.overhead`.

Four rows a step, text encoded and latents drawn beforehand, nothing decoded. Beside the edit: the plain loop of
diffusers, the plain loop through the same runner, and the eager controller way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from adapedit.methods import PromptToPrompt
from adapedit_engine.plan import EditPlan
from adapedit_engine.scheduler import CachedRunner, denoise
from benchmarks import common, parity
from benchmarks.baselines.eager import Controller, controlled
from benchmarks.baselines.plain import as_loaded, plain_loop

EDIT = PromptToPrompt(cross_replace_steps=0.8, self_replace_steps=0.4)
"""What the eager way does, too, whatever a model's own settings are."""


def main() -> None:
    options = common.arguments(__doc__, steps=10, repeats=7).parse_args()
    if options.quick:
        options.steps, options.repeats = 3, 2
    pipe = common.pipeline(options)
    gate = same_latents(parity.pipelines(options, pipe), options.steps)
    plan, _ = plans(pipe, options.steps)
    variants, _ = loops(pipe, plan, options.steps)
    times = common.timed(variants, options.repeats, common.waiting(options.device))
    flops = unet_flops(pipe, plan)
    ceiling = common.matrix_ceiling(options.device, options.dtype)
    for seconds in times.values():
        rate = flops * options.steps / seconds["least_s"]
        seconds |= {"flops_per_s": rate, "share_of_ceiling": round(rate / ceiling, 3)}
    edit = times["edit"]["least_s"]
    ratios = {name: round(seconds["least_s"] / edit, 3) for name, seconds in times.items()}
    medians = {
        name: round(seconds["median_s"] / times["edit"]["median_s"], 3) for name, seconds in times.items()
    }
    common.write(
        "overhead",
        options,
        {
            "rows": 4,
            "parity": gate,
            "flops_of_a_call": flops,
            "ceiling_flops_per_s": ceiling,
            "times": times,
            "edit_over_plain_diffusers": round(1 / ratios["plain (diffusers)"], 3),
            "edit_over_plain_same_runner": round(1 / ratios["plain (same runner)"], 3),
            "eager_over_edit": ratios["eager controller"],
            "medians_over_edit": medians,
        },
    )


def plans(pipe: Any, steps: int) -> tuple[EditPlan, EditPlan]:
    """An edit by Prompt-to-Prompt, which the eager way can do too, and the same rows unedited."""
    from adapedit.prepare import complete, make_context

    request = complete(common.request(0, steps, method=EDIT), pipe.model)
    context = make_context(request, pipe.model)
    return (
        request.method.plan(context, None),
        context.plan((context.source, context.target)),
    )


def loops(pipe: Any, plan: EditPlan, steps: int) -> tuple[dict[str, Any], Any]:
    """The variants, and a function that gives the latents of each for the parity gate."""
    model = pipe.model
    unet = as_loaded(model.runner.controlled.unet)
    dtype, device = unet.dtype, unet.device
    context_text = plan.encoder_hidden_states.to(device, dtype).transpose(0, 1).flatten(0, 1)
    latents = plan.latents.to(device, dtype)
    scale = float(plan.guidance_weights[0, 1])
    _, plain_plan = plans(pipe, steps)

    runner = CachedRunner(model.runner, 2**28)

    def ours(wanted: EditPlan) -> Any:
        with runner as opened:
            (outcome,) = denoise([wanted], opened)
        return outcome.latents

    def plain() -> Any:
        return plain_loop(unet, model.scheduler, latents, context_text, scale, steps)

    def eager() -> Any:
        specs = model.runner.specs
        height, width = latents.shape[-2:]
        assert plan.token_map is not None and plan.own_weight is not None and plan.word_steps is not None
        controller = Controller(
            layers=len(specs.self_layers) + len(specs.cross_layers),
            steps=steps,
            token_map=plan.token_map[1].to(device, dtype),
            own_weight=plan.own_weight[1].to(device, dtype),
            word_steps=plan.word_steps[1].to(device, dtype),
            self_steps=EDIT.self_replace_steps,
            self_pixels=(height // model.facts.self_divisor) * (width // model.facts.self_divisor),
        )
        with controlled(unet, controller):
            return plain()

    variants = {
        "edit": lambda: ours(plan),
        "plain (same runner)": lambda: ours(plain_plan),
        "plain (diffusers)": plain,
        "eager controller": eager,
    }
    return variants, lambda: {name: run().float().cpu() for name, run in variants.items()}


def same_latents(pipes: parity.Pipelines, steps: int) -> dict[str, Any]:
    """How far the loops' latents are apart, by dtype. Raises `SystemExit` where they are not the same in float32."""

    def outputs(pipe: Any) -> dict[str, Any]:
        return loops(pipe, plans(pipe, steps)[0], steps)[1]()

    exact, *others = pipes
    found: dict[str, Any] = {**check(outputs(pipes[exact]))}
    return found | {f"in_{dtype}": apart(outputs(pipes[dtype])) for dtype in others}


def apart(latents: dict[str, Any]) -> dict[str, float]:
    """The largest difference between latents that are to be the same."""
    return {
        "edit_to_eager": float((latents["edit"] - latents["eager controller"]).abs().max()),
        "plain_to_diffusers": float(
            (latents["plain (same runner)"] - latents["plain (diffusers)"]).abs().max()
        ),
        "source_to_plain": float((latents["edit"][0] - latents["plain (same runner)"][0]).abs().max()),
    }


def check(latents: dict[str, Any]) -> dict[str, float]:
    """A benchmark of loops that do different things says nothing: the same latents in float32, or no times."""
    found = apart(latents)
    tolerance = 2e-2 if latents["edit"].abs().max() > 50 else 5e-3
    for name, difference in found.items():
        if not difference < tolerance:
            raise SystemExit(f"parity: {name} is {difference:.2g}, wanted less than {tolerance}: not timed")
    return found


def unet_flops(pipe: Any, plan: EditPlan) -> int:
    """Of one call of the plan's rows, counted by PyTorch."""
    unet = pipe.model.runner.controlled.unet
    text = plan.encoder_hidden_states.to(unet.device, unet.dtype).flatten(0, 1)
    sample = torch.cat([plan.latents, plan.latents]).to(unet.device, unet.dtype)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        unet(sample, 1, encoder_hidden_states=text)
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
