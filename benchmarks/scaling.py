"""How cost grows with steps, edits, edits of one source and pixels: `python -m benchmarks.scaling`."""

from __future__ import annotations

from typing import Any

from adapedit.methods.settings import PromptToPrompt
from benchmarks import common

TARGETS = ("dog sitting", "cat standing", "bird standing", "dog jumping", "cat sitting", "bird sitting")
PLACES = ("grass", "snow")


def main() -> None:
    options = common.arguments(__doc__, steps=5, repeats=3).parse_args()
    if options.quick:
        options.steps, options.repeats = 2, 1
    pipe, steps = common.pipeline(options), options.steps
    wait = common.waiting(options.device)
    side = pipe.model.latent_size * pipe.model.vae_factor

    def edits(requests: list[Any], **how: Any) -> Any:
        return lambda: pipe.edit_batch(requests, **how)

    by_steps = {str(n): edits([common.request(0, n)]) for n in (steps, 2 * steps, 4 * steps)}
    by_edits = {
        str(n): edits([common.request(i, steps) for i in range(n)], max_rows=16) for n in (1, 2, 4, 8)
    }
    by_size = {
        str(n): edits([common.request(0, steps, height=n, width=n)]) for n in (side, side * 3 // 2, 2 * side)
    }
    one_source = sweep(8, steps)
    by_source = {
        "shared": edits(one_source),
        "separate, one by one": lambda: [pipe.edit_batch([each]) for each in one_source],
        "separate, one batch": edits(one_source, share_sources=False),
    }
    times = {
        name: common.timed(variants, options.repeats, wait)
        for name, variants in (
            ("steps", by_steps),
            ("edits", by_edits),
            ("pixels", by_size),
            ("source", by_source),
        )
    }
    lines = {}
    for name in ("steps", "edits"):
        lines[name] = common.line(
            [int(n) for n in times[name]], [seconds["least_s"] for seconds in times[name].values()]
        )
    pixels = [int(n) ** 2 for n in times["pixels"]]
    lines["pixels"] = common.line(pixels, [seconds["least_s"] for seconds in times["pixels"].values()])
    shared = times["source"]["shared"]["least_s"]
    common.write(
        "scaling",
        options,
        {
            "times": times,
            "lines": lines,
            "eight_of_one_source_over_one_by_one": round(
                shared / times["source"]["separate, one by one"]["least_s"], 3
            ),
            "eight_of_one_source_over_one_batch": round(
                shared / times["source"]["separate, one batch"]["least_s"], 3
            ),
        },
    )


def sweep(count: int, steps: int) -> list[Any]:
    """Edits of one source."""
    prompts = [f"a red {target} on the {place}" for place in PLACES for target in TARGETS][:count]
    return [
        common.request(0, steps, target_prompt=prompt, method=PromptToPrompt(), seed=0) for prompt in prompts
    ]


if __name__ == "__main__":
    main()
