"""Ways that are compared, each in a process of its own, in turn over short stretches: a slow minute falls on all.

The time of day on a shared machine is no fair judge between two runs of minutes: cores were a third slower for some of
them. So the processes are stopped and continued, one at a time, and each has a clock that stands while it does.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

Way = tuple[Callable[..., Any], Sequence[Any]]
"""A function of a module, with its arguments behind the clock: `function(clock, *arguments)`."""

STRETCH_SECONDS = 5.0


class Clock:
    """Seconds in which this process was not stopped. `begin` says that all is ready, and waits for the first turn."""

    def __init__(self, stopped: Any, ready: Any) -> None:
        self._stopped, self._ready = stopped, ready

    def __call__(self) -> float:
        return time.perf_counter() - float(self._stopped.value)

    def begin(self) -> None:
        """Models are loaded and warm."""
        self._ready.set()
        # Stopped by now or in a moment: what is measured begins with the first turn.
        before = self._stopped.value
        while self._stopped.value == before:
            time.sleep(0.001)

    def sleep_until(self, moment: float) -> None:
        """Until this clock shows so much."""
        while (left := moment - self()) > 0:
            time.sleep(left)


@dataclass(kw_only=True, eq=False)
class _Turn:
    process: Any
    results: Connection
    stopped: Any
    ready: Any
    since: float = 0.0
    found: Any = field(default=None)

    def stop(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)
        self.since = time.perf_counter()

    def go_on(self) -> None:
        # Before it runs again: it never sees the time in which it stood.
        self.stopped.value += time.perf_counter() - self.since
        os.kill(self.process.pid, signal.SIGCONT)


def in_turns(ways: Mapping[str, Way], stretch: float = STRETCH_SECONDS) -> dict[str, Any]:
    """What each way returns, by name. Raises `RuntimeError` where one ends without.

    POSIX only. stretch: seconds of a turn.
    """
    turns: dict[str, _Turn] = {}
    try:
        for name, (function, arguments) in ways.items():
            turns[name] = _start(name, function, arguments)
        for name, turn in turns.items():
            _await(name, turn)
        left = dict(turns)
        while left:
            for name, turn in list(left.items()):
                turn.go_on()
                if turn.results.poll(stretch):
                    del left[name]
                    turn.found = _received(name, turn)
                else:
                    turn.stop()
    finally:
        for turn in turns.values():
            if turn.process.is_alive():
                turn.process.kill()
            turn.process.join()
    return {name: turn.found for name, turn in turns.items()}


def _start(name: str, function: Callable[..., Any], arguments: Sequence[Any]) -> _Turn:
    """A process that makes itself ready."""
    context = multiprocessing.get_context("spawn")
    results, sender = context.Pipe(duplex=False)
    stopped, ready = context.Value("d", 0.0, lock=False), context.Event()
    process = context.Process(
        target=_run, args=(function, arguments, stopped, ready, sender), name=name, daemon=True
    )
    process.start()
    sender.close()
    return _Turn(process=process, results=results, stopped=stopped, ready=ready)


def _await(name: str, turn: _Turn) -> None:
    """Until it is ready; then it stands."""
    while not turn.ready.wait(0.2):
        if not turn.process.is_alive():
            raise RuntimeError(f"{name} ended with code {turn.process.exitcode} before it was ready")
    turn.stop()


def _received(name: str, turn: _Turn) -> Any:
    try:
        return turn.results.recv()
    except EOFError:
        turn.process.join()
        raise RuntimeError(f"{name} ended with code {turn.process.exitcode} and no result") from None
    finally:
        turn.process.join()


def _run(
    function: Callable[..., Any], arguments: Sequence[Any], stopped: Any, ready: Any, sender: Any
) -> None:
    sender.send(function(Clock(stopped, ready), *arguments))
    sender.close()
