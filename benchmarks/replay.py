"""What a second edit of a source costs against the first, and against one alone: `python -m benchmarks.replay`."""

from __future__ import annotations

from itertools import count
from typing import Any

from adapedit.methods.settings import AdapEdit, MasaCtrl, PromptToPrompt
from benchmarks import common

METHODS = {
    "prompt-to-prompt": PromptToPrompt(),
    "adapedit": AdapEdit(single_pass=True),
    "masactrl": MasaCtrl(),
}
TARGETS = (
    "a red dog sitting on the grass",
    "a red cat standing on the grass",
    "a red dog standing on the snow",
)


def main() -> None:
    parser = common.arguments(__doc__, steps=50, repeats=5)
    parser.add_argument("--bytes", type=int, default=2**32, help="what recordings may take")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.repeats = 2, 1
    pipe, wait = common.pipeline(options), common.waiting(options.device)
    results = {name: measure(pipe, method, options, wait) for name, method in METHODS.items()}
    common.write("replay", options, {"methods": results})


def measure(pipe: Any, method: Any, options: Any, wait: Any) -> dict[str, Any]:
    """Seconds of an edit through a server: of a source that is seen for the first time, with and without recording
    it, and of one that is known."""
    fresh, targets = count(1), count()

    def request(seed: int, target: str) -> Any:
        return common.request(0, options.steps, seed=seed, target_prompt=target, method=method)

    def another() -> str:
        return TARGETS[next(targets) % len(TARGETS)]

    with pipe.serve() as plain, pipe.serve(trajectory_bytes=options.bytes) as keeping:
        keeping.submit(request(0, TARGETS[0])).result()
        size = keeping.stats.trajectories.bytes
        times = common.timed(
            {
                "alone": lambda: plain.submit(request(next(fresh), another())).result(),
                "first": lambda: keeping.submit(request(next(fresh), another())).result(),
                "second": lambda: keeping.submit(request(0, another())).result(),
            },
            options.repeats,
            wait,
        )
        pairs = [(plain.submit(request(0, t)), keeping.submit(request(0, t))) for t in TARGETS]
        apart = common.gate(max(common.grey_levels(one.result(), other.result()) for one, other in pairs))
        stats = keeping.stats.trajectories
    alone, first, second = (times[name]["least_s"] for name in ("alone", "first", "second"))
    return {
        "times": times,
        "first_over_alone": round(first / alone, 3),
        "second_over_alone": round(second / alone, 3),
        "bytes_of_a_source": size,
        "largest_difference_in_grey_levels": apart,
        "cache": {"hits": stats.hits, "misses": stats.misses, "evictions": stats.evictions},
    }


if __name__ == "__main__":
    main()
