"""Metrics for Prometheus and logs as JSON lines. Neither holds a prompt or a picture."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from adapedit.server import ServerStats

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
STAGES = {
    "total": "from its acceptance to its end",
    "queue": "before it was prepared",
    "prepare": "aligning and encoding",
    "step": "of one step",
    "decode": "decoding its pictures",
}
OF_SCHEDULER = {
    "calls": "Calls of the model.",
    "rows": "Rows of all calls.",
    "retried": "Calls split after an error, such as memory that ran out.",
}


Look = Callable[[], Mapping[str, tuple[int, int, ServerStats | None]]]


class Metrics:
    """What /metrics shows. look: the state of each model: edits waiting, edits running, counts of its server."""

    def __init__(self, look: Look) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "reason")
        self.ended = Counter("adapedit_edits", "Edits that ended.", labels, registry=self.registry)
        refused = "Requests that were answered with an error."
        self.refused = Counter("adapedit_refused", refused, ("status",), registry=self.registry)
        self._seconds = {
            name: Histogram(
                f"adapedit_{'edit' if name == 'total' else name}_seconds",
                f"Seconds of an edit {what}.",
                buckets=SECONDS,
                registry=self.registry,
            )
            for name, what in STAGES.items()
        }
        self.registry.register(_Look(look))

    def observe(self, method: str, reason: str, seconds: Mapping[str, float]) -> None:
        """An edit has ended. reason: completed, cancelled, or its error's code. seconds: by stage, as far as known."""
        self.ended.labels(method, reason).inc()
        for name in self._seconds.keys() & seconds:
            self._seconds[name].observe(seconds[name])

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Look(Collector):
    """Values that are read when they are asked for."""

    def __init__(self, look: Look) -> None:
        self._look = look

    def describe(self) -> Iterable[Any]:
        return []

    def collect(self) -> Iterator[Any]:
        running = GaugeMetricFamily("adapedit_running", "Edits under way.", labels=["model"])
        waiting = GaugeMetricFamily("adapedit_waiting", "Edits that wait.", labels=["model"])
        counts = {
            name: CounterMetricFamily(f"adapedit_model_{name}", text, labels=["model"])
            for name, text in OF_SCHEDULER.items()
        }
        labels = ["model", "cache", "found"]
        caches = CounterMetricFamily("adapedit_cache_lookups", "Looked for in caches.", labels=labels)
        for model, (waits, runs, stats) in self._look().items():
            running.add_metric([model], runs)
            waiting.add_metric([model], waits)
            if stats is None:
                continue
            for name, family in counts.items():
                family.add_metric([model], getattr(stats.scheduler, name))
            for cache, found in stats.caches.items():
                caches.add_metric([model, cache, "hit"], found.hits)
                caches.add_metric([model, cache, "miss"], found.misses)
        yield from (running, waiting, *counts.values(), caches)


OURS = ("adapedit", "uvicorn")
"""Loggers whose messages are fixed texts. What others say may quote what they were given."""
EXTRA = ("edit", "model", "method", "reason", "seconds", "status", "path", "verb", "count", "port")
"""What a line may say besides its message: ids, names and numbers."""


class Lines(logging.Formatter):
    """A log record as one line of JSON. Errors are named by type and place: their text may quote a request."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage() if record.name.startswith(OURS) else f"from {record.name}",
        }
        line |= {name: getattr(record, name) for name in EXTRA if hasattr(record, name)}
        if record.exc_info and record.exc_info[1] is not None:
            from adapedit.http.errors import where

            line["reason"] = where(record.exc_info[1])
        return json.dumps(line, allow_nan=False)


def log_lines() -> None:
    """Let everything be logged as lines of JSON on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("adapedit").setLevel(logging.INFO)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers[:], logger.propagate = [], name != "uvicorn.access"
        logger.setLevel(logging.WARNING)
