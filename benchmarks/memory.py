"""Memory over a thousand edits, and the peak that is known before they run: `python -m benchmarks.memory`.

Unrelated edits go through one server with a budget and small caches, so that the caches fill and evict. The resident
memory is read on the way, whenever nothing is in flight: as it is, and once the C library has given back what nobody
uses. A line through the second half of the latter says whether what is in use grows; the former also shows what the
library keeps in stock. Beside it, what the server knew beforehand: the most that edits in flight and one call take.
Then a budget that is too small for one edit, and one that is enough for one at a time: the first has to refuse, the
second to let the others wait.
"""

from __future__ import annotations

import ctypes
import gc
import resource
from pathlib import Path
from typing import Any

from adapedit.server import EditServer
from adapedit_engine.scheduler import AdmissionError
from benchmarks import common

CACHE = 2**20
READINGS = 50


def main() -> None:
    options = common.arguments(__doc__, edits=1000, steps=2, max_rows=16, budget_mib=1024).parse_args()
    if options.quick:
        options.edits = 40
    pipe = common.pipeline(options)
    common.write(
        "memory", options, {**growth(pipe, options), **limits(pipe, options.steps, options.budget_mib)}
    )


def growth(pipe: Any, options: Any) -> dict[str, Any]:
    """Resident memory by the number of edits that are done."""
    requests = common.unrelated(options.edits, options.steps)
    for each in requests[:4]:  # what is made once, such as packed weights and buffers of libraries
        pipe.edit_batch([each])
    budget, before = options.budget_mib * 2**20, resident()
    readings: list[tuple[int, float, float]] = []
    with EditServer(pipe.model, max_rows=options.max_rows, budget_bytes=budget, cache_bytes=CACHE) as server:
        for start in range(0, options.edits, part := max(1, options.edits // READINGS)):
            some = requests[start : start + part]
            for item in server.stream(some):
                if item.error is not None:
                    raise item.error
            del item
            readings.append((start + len(some), resident(), in_use()))
        stats = server.stats
    second = readings[len(readings) // 2 :]
    fit = common.line([done for done, _, _ in second], [mib for *_, mib in second])
    caches = {
        name: getattr(stats, name) for name in ("embeddings", "projections", "observations", "pictures")
    }
    return {
        "edits": options.edits,
        "done": [done for done, _, _ in readings],
        "resident_mib": [mib for _, mib, _ in readings],
        "in_use_mib": [mib for *_, mib in readings],
        "growth_mib_per_1000_edits": round(1000 * fit["slope"], 2),
        "largest_over_before_mib": round(max(mib for _, mib, _ in readings) - before, 1),
        "known_beforehand_mib": round(stats.scheduler.most_bytes / 2**20, 2),
        "budget_mib": options.budget_mib,
        "caches": {
            name: {
                "bytes": cache.bytes,
                "bound": CACHE,
                "evictions": cache.evictions,
                "hit_rate": cache.hit_rate,
            }
            for name, cache in caches.items()
        },
    }


def limits(pipe: Any, steps: int, budget_mib: int) -> dict[str, Any]:
    """What a budget does to an edit that exceeds it, and to edits that do so together."""
    requests = common.unrelated(4, steps)
    with EditServer(pipe.model, budget_bytes=1) as server:
        (found,) = server.stream(requests[:1])
    if not isinstance(found.error, AdmissionError):
        raise SystemExit(f"a budget of one byte did not refuse the edit: {found}")
    with EditServer(pipe.model, budget_bytes=budget_mib * 2**20) as server:
        list(server.stream(requests[:1]))
        alone = server.stats.scheduler.most_bytes
    with EditServer(pipe.model, budget_bytes=alone) as server:
        ended = [item.error for item in server.stream(requests)]
        rows, most = server.stats.scheduler.most_rows, server.stats.scheduler.most_bytes
    if any(ended) or most > alone:
        raise SystemExit(f"a budget for one edit at a time did not hold: {ended}, {most} of {alone} bytes")
    return {"refused": str(found.error), "bytes_of_one": alone, "most_rows_with_that_budget": rows}


def in_use() -> float:
    """The same after the C library has given back what it keeps in stock; glibc alone can be asked to."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return resident()


def resident() -> float:
    """MiB of this process now."""
    gc.collect()
    status = Path("/proc/self/statm")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return round(int(status.read_text().split()[1]) * resource.getpagesize() / 2**20, 1)


if __name__ == "__main__":
    main()
