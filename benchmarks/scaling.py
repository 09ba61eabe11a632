"""How cost grows with steps, edits, edits of one source and pixels: `python -m benchmarks.scaling`.

Beside each: diffusers' plain loop and the eager controller way, one edit after the other. Nothing is timed before the
pictures of edits together are those of edits alone, and the eager way's loop is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from adapedit.methods import PromptToPrompt
from benchmarks import common, overhead, parity
from benchmarks.baselines.edits import OtherWays, one_by_one

TARGETS = ("dog sitting", "cat standing", "bird standing", "dog jumping", "cat sitting", "bird sitting")
PLACES = ("grass", "snow")
Ways = Mapping[str, Callable[[], Any]]


def main() -> None:
    options = common.arguments(__doc__, steps=8, repeats=3).parse_args()
    if options.quick:
        options.steps, options.repeats = 2, 1
    pipe, steps = common.pipeline(options), options.steps
    side = pipe.model.latent_size * pipe.model.vae_factor
    shared = sweep(8, steps)
    pipes = parity.pipelines(options, pipe)
    gate = parity.grey_levels(pipes, lambda each: apart(each, shared[:3])) | overhead.same_latents(pipes, 3)
    axes = {
        "steps": {n: [common.request(0, n)] for n in (steps, 2 * steps, 4 * steps)},
        "edits": {n: [common.request(i, steps) for i in range(n)] for n in (1, 2, 4, 8)},
        "pixels": {
            n * n: [common.request(0, steps, height=n, width=n)] for n in (side, side * 3 // 2, 2 * side)
        },
        "edits of one source": {n: shared[:n] for n in (1, 2, 4, 8)},
    }
    wait, others = common.waiting(options.device), OtherWays(pipe)
    times: dict[str, dict[str, dict[str, Any]]] = {}
    lines: dict[str, dict[str, dict[str, float]]] = {}
    for axis, cases in axes.items():
        by_way: dict[str, dict[str, Any]] = {way: {} for way in ("edit", "plain", "eager")}
        found = common.timed(ways(pipe, others, cases), options.repeats, wait)
        for name, seconds in found.items():
            way, _, size = name.partition(" ")
            by_way[way][size] = seconds
        times[axis] = by_way
        lines[axis] = {way: fitted(each) for way, each in by_way.items()}
    one_source = common.timed(
        {
            "shared": lambda: pipe.edit_batch(shared),
            "separate, one by one": lambda: [pipe.edit_batch([each]) for each in shared],
            "separate, one batch": lambda: pipe.edit_batch(shared, share_sources=False),
        },
        options.repeats,
        wait,
    )
    together = one_source["shared"]["least_s"]
    common.write(
        "scaling",
        options,
        {
            "parity": gate,
            "times": times,
            "lines": lines,
            "eight_of_one_source": one_source,
            **{
                f"eight_of_one_source_over_{name.rpartition(', ')[2].replace(' ', '_')}": round(
                    together / seconds["least_s"], 3
                )
                for name, seconds in one_source.items()
                if name != "shared"
            },
            "arithmetic": arithmetic(pipe, options, steps, times),
        },
    )


def ways(pipe: Any, others: OtherWays, cases: Mapping[int, Sequence[Any]]) -> dict[str, Callable[[], Any]]:
    """Every size by every way, named `<way> <size>`."""
    variants: dict[str, Callable[[], Any]] = {}
    for size, requests in cases.items():
        variants[f"edit {size}"] = partial(pipe.edit_batch, requests)
        variants[f"plain {size}"] = partial(one_by_one, others.plain, requests)
        variants[f"eager {size}"] = partial(one_by_one, others.eager, requests)
    return variants


def fitted(times: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The straight line through seconds by size."""
    return common.line([int(size) for size in times], [seconds["least_s"] for seconds in times.values()])


def arithmetic(pipe: Any, options: Any, steps: int, times: Any) -> dict[str, float]:
    """FLOP/s of the UNet in the largest run over steps, and its share of what a matrix product reaches."""
    flops = overhead.unet_flops(pipe, overhead.plans(pipe, 1)[0]) / 4
    rate = flops * 6 * 4 * steps / times["steps"]["edit"][str(4 * steps)]["least_s"]
    ceiling = common.matrix_ceiling(options.device, options.dtype)
    return {
        "flops_per_s": rate,
        "ceiling_flops_per_s": ceiling,
        "share_of_ceiling": round(rate / ceiling, 3),
    }


def apart(pipe: Any, requests: Sequence[Any]) -> int:
    """Edits that share their source, against the same alone, in grey levels."""
    together = pipe.edit_batch(requests)
    alone = [pipe.edit_batch([each])[0] for each in requests]
    return max(map(common.grey_levels, together, alone))


def sweep(count: int, steps: int) -> list[Any]:
    """Edits of one source."""
    prompts = [f"a red {target} on the {place}" for place in PLACES for target in TARGETS][:count]
    return [
        common.request(0, steps, target_prompt=prompt, method=PromptToPrompt(), seed=0) for prompt in prompts
    ]


if __name__ == "__main__":
    main()
