"""Hundreds of random edits with injected faults: `python -m benchmarks.soak`.

A runner that raises, memory that runs out at random steps, cancelled futures, edits that can't be run. Every accepted
edit must end exactly once, with a result or its own error, and the pictures of the survivors must be those of an
undisturbed run. Memory is read on the way. Then `adapedit batch` is killed and begun again, with files of its cache of
inversions cut short in between.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.faults import POISON, FaultyRunner
from benchmarks.memory import resident
from benchmarks.restarts import killed_and_begun_again


def main() -> None:
    parser = common.arguments(__doc__, edits=500, steps=2, check_every=10, batch=24, kills=3)
    options = parser.parse_args()
    if options.quick:
        options.edits, options.batch, options.kills, options.check_every = 24, 4, 1, 2
    pipe = common.pipeline(options)
    report = soak(pipe, options.edits, options.steps, check_every=options.check_every)
    with tempfile.TemporaryDirectory() as folder:
        report["restarts"] = killed_and_begun_again(
            pipe,
            Path(folder),
            model=options.model,
            edits=options.batch,
            steps=options.steps,
            kills=options.kills,
            check_every=2,
        )
    common.write("soak", options, report)
    wrong = report["wrong"] + report["restarts"]["wrong"]
    if wrong:
        raise SystemExit(f"{len(wrong)} things went wrong: {wrong[:3]}")


def soak(
    pipe: Any, edits: int, steps: int, *, check_every: int = 1, seed: int = 0, errors: float = 0.02
) -> dict[str, Any]:
    """Run them and say how they ended.

    check_every: of the survivors, every n-th is made again undisturbed.
    errors:      chance of a call of the runner to raise.
    """
    from adapedit.server import EditServer

    random_ = random.Random(seed)
    runner = FaultyRunner(pipe.model.runner, errors=errors, out_of_memory=0.0005, seed=seed)
    requests = [make(place, steps, random_) for place in range(edits)]
    fates = [random_.choices(("run", "cancel", "poison"), (90, 6, 4))[0] for _ in requests]
    ended: Counter[int] = Counter()
    futures: list[Future[Any]] = []
    memory = []
    with EditServer(replace(pipe.model, runner=runner), max_rows=16, max_pending=24) as server:
        for place, (request, fate) in enumerate(zip(requests, fates, strict=True)):
            future = submit(server, request, poisoned=fate == "poison")
            future.add_done_callback(partial(_count, ended, place))
            futures.append(future)
            if fate == "cancel":
                time.sleep(random_.random() * 0.02)
                future.cancel()
            if place % max(1, edits // 10) == 0:
                memory.append(resident())
    memory.append(resident())
    wrong = [f"edit {place} ended {ended[place]} times" for place in range(edits) if ended[place] != 1]
    outcomes: Counter[str] = Counter()
    survivors = []
    for place, (future, fate) in enumerate(zip(futures, fates, strict=True)):
        kind = "cancelled" if future.cancelled() else "failed" if future.exception() else "done"
        outcomes[kind] += 1
        wanted = {"run": {"done"}, "cancel": {"cancelled", "done"}, "poison": {"failed"}}[fate]
        if kind not in wanted and not _twice_unlucky(future):
            wrong.append(f"edit {place} was to {fate} and is {kind}: {future}")
        if kind == "done":
            survivors.append(place)
    largest = 0
    for place in survivors[::check_every]:
        (alone,) = pipe.edit_batch([requests[place]])
        result = futures[place].result()
        largest = max(largest, common.grey_levels(result, alone))
    if largest > 1:
        wrong.append(f"a survivor differs from the undisturbed run by {largest} grey levels")
    stats = server.stats
    return {
        "edits": edits,
        "outcomes": dict(outcomes),
        "faults_raised": runner.raised,
        "calls_tried_again": stats.scheduler.retried,
        "survivors_compared": len(survivors[::check_every]),
        "largest_difference_grey_levels": largest,
        "resident_mib": memory,
        "growth_mib_second_half": round(memory[-1] - memory[len(memory) // 2], 1),
        "wrong": wrong,
    }


def _count(ended: Counter[int], place: int, _: Future[Any]) -> None:
    ended[place] += 1


def make(place: int, steps: int, random_: random.Random) -> Any:
    """A random edit: method, passes, number of steps; some share their source."""
    from adapedit.methods import AdapEdit, Plain, PromptToPrompt

    settings = random_.choice((AdapEdit(two_pass=True), AdapEdit(), PromptToPrompt(), Plain()))
    length = random_.randint(1, 2 * steps)
    return common.request(place, length, method=settings, seed=random_.randint(0, 5))


def submit(server: Any, request: Any, *, poisoned: bool) -> Future[Any]:
    """Submit; a poisoned edit has latents that no runner takes, which shows only when it runs."""
    if not poisoned:
        return server.submit(request)
    prepare = server._prepare
    server._prepare = lambda *args: _poison(prepare(*args))
    try:
        return server.submit(request)
    finally:
        server._prepare = prepare


def _poison(edit: Any) -> Any:
    context = replace(edit.context, latents=edit.context.latents * 10 * POISON)
    observe, draft = edit.method.observe(context), edit.method.plan(context, None)
    return replace(edit, context=context, observe=observe, draft=draft, key=None)


def _twice_unlucky(future: Future[Any]) -> bool:
    """An edit that met an injected error alone, and again when it was tried again: the error is its own then."""
    error = None if future.cancelled() else future.exception()
    return error is not None and ("hiccup" in str(error) or isinstance(error, MemoryError))


if __name__ == "__main__":
    main()
