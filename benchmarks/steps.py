"""Steps, edits and arrivals through captured steps: `python -m benchmarks.steps --device cuda --model sd-v1-shape`.

In one process, for a model of a gigabyte is loaded once, and in the order of what has to be known first: the captured
step beside the launched one (where they differ nothing is timed), an edit's step beside that of as many plain rows,
whole edits, edits a second, and how many steps pass before an edit that arrives takes part. Written after every part.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from adapedit.edit import complete, make_context
from adapedit.methods import AdapEdit, PromptToPrompt
from adapedit.methods.base import Method
from adapedit.sharing import Caches
from adapedit_engine.batch import Batch
from adapedit_engine.cuda_graph import CapturedSteps
from adapedit_engine.plan import EditPlan
from adapedit_engine.step import step
from benchmarks import common

METHODS = {
    "prompt-to-prompt": PromptToPrompt(cross_replace_steps=0.8, self_replace_steps=0.4),
    "single pass": AdapEdit(local_blend=True),
}
WAYS = {"single pass": AdapEdit(), "two passes": AdapEdit(two_pass=True)}
ROWS = (2, 4, 8, 16, 32)
APART = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest difference of latents over the largest latent that is rounding."""


def main() -> None:
    options = common.arguments(__doc__, steps=50, repeats=3, max_rows=32, arrivals=8).parse_args()
    if options.quick:
        options.steps, options.repeats, options.max_rows, options.arrivals = 6, 1, 8, 2
    pipe, found = common.pipeline(options), dict[str, Any]()
    parts = {
        "captured": captured,
        "steps": steps,
        "edits": edits,
        "throughput": throughput,
        "arrivals": arrivals,
    }
    for name, part in parts.items():
        with pipe.model.runner:
            found[name] = part(pipe, options)
        common.write("steps", options, found, whole=len(found) == len(parts))


def plan_of(pipe: Any, options: Any, method: Method | None) -> EditPlan:
    """An edit; None: as many rows, unedited."""
    asked = complete(common.request(0, options.steps, method=method or WAYS["single pass"]), pipe.model)
    context = make_context(asked, pipe.model, Caches.of(pipe.model.runner))
    plan: EditPlan = context.plan(("source", "target")) if method is None else method.plan(context, None)
    return plan


def stepper(batch: Batch) -> Callable[[], None]:
    """Takes the next step of all edits of a batch, captured where that can be."""
    if batch.runner.device.type != "cuda":
        return partial(step, batch)
    taken = CapturedSteps(batch)
    return lambda: taken.step(batch.seats)


def captured(pipe: Any, options: Any) -> dict[str, float]:
    """Differences of latents, captured and launched, after some steps. Raises `SystemExit` above rounding."""
    found = {}
    for name, method in METHODS.items():
        plan, latents = plan_of(pipe, options, method), []
        for whole in (True, False):
            batch = Batch(pipe.model.runner, plan.rows, whole=whole)
            seat = batch.join(plan)
            take = stepper(batch) if whole else partial(step, batch)
            for _ in range(min(4, options.steps)):
                take()
            latents.append(batch.latents(seat))
        found[name] = float((latents[0] - latents[1]).abs().max() / latents[1].abs().max())
        if not found[name] <= APART[options.dtype]:
            raise SystemExit(
                f"parity: {name}: captured and launched latents differ by {found[name]:.1e}: not timed"
            )
    return found


def steps(pipe: Any, options: Any) -> dict[str, Any]:
    """Milliseconds of a step by rows, of edits and of plain rows, and their ratio."""
    plans = {
        "plain": plan_of(pipe, options, None),
        **{n: plan_of(pipe, options, m) for n, m in METHODS.items()},
    }
    found: dict[str, Any] = {}
    for rows in [rows for rows in ROWS if rows <= options.max_rows]:
        ways = {}
        for name, plan in plans.items():
            batch = Batch(pipe.model.runner, rows, whole=True)
            if name == "plain" and rows < plan.rows:
                plan = plan.without_guidance()
            for _ in range(rows // plan.rows):
                batch.join(plan)
            if batch.seats:
                ways[name] = stepper(batch)
        times = common.timed(ways, 5 * options.repeats, common.waiting(options.device))
        over = {name: round(t["median_s"] / times["plain"]["median_s"], 4) for name, t in times.items()}
        found[str(rows)] = {"times": times, "over plain": over}
    return found


def edits(pipe: Any, options: Any) -> dict[str, Any]:
    """Seconds of whole edits, from prompts to pictures."""
    ways = {
        name: partial(pipe.edit_batch, [common.request(0, options.steps, method=method)])
        for name, method in WAYS.items()
    }
    return common.timed(ways, options.repeats, common.waiting(options.device))


def throughput(pipe: Any, options: Any) -> dict[str, float]:
    """Single-pass edits a second through one server, all there from the beginning, once its steps are captured."""
    with pipe.serve(max_rows=options.max_rows) as server:

        def run(first: int) -> float:
            asked = [common.request(first + i, options.steps) for i in range(options.max_rows // 2)]
            start = time.perf_counter()
            for future in [server.submit(each) for each in asked]:
                future.result()
            return time.perf_counter() - start

        run(0)
        seconds = run(1000)
    return {"edits_per_s": round(options.max_rows // 2 / seconds, 3), "seconds": round(seconds, 3)}


def arrivals(pipe: Any, options: Any) -> dict[str, Any]:
    """How many steps of an edit under way pass until one that arrives takes part, and seconds that `submit` takes."""
    done, first, submitted = [0], dict[int, int](), dict[int, tuple[int, float]]()
    moved = threading.Condition()

    def under_way(count: int, total: int) -> None:
        with moved:
            done[0] = count
            moved.notify_all()

    def joined(place: int, count: int, total: int) -> None:
        first.setdefault(place, done[0])

    length = options.steps + 3 * options.arrivals
    with pipe.serve(max_rows=options.max_rows) as server:
        server.submit(common.request(99, options.steps)).result()  # captured
        server.submit(common.request(0, length), progress=under_way)
        for place in range(options.arrivals):
            with moved:
                while done[0] <= 3 * place:
                    moved.wait()
            start = time.perf_counter()
            asked = common.request(1 + place, options.steps)
            future = server.submit(asked, progress=partial(joined, place))
            submitted[place] = done[0], time.perf_counter() - start
        future.result()
    waited = [first[place] - before for place, (before, _) in submitted.items()]
    return {
        "steps before it takes part": waited,
        "submit_s": common.summary([seconds for _, seconds in submitted.values()]),
    }


if __name__ == "__main__":
    main()
