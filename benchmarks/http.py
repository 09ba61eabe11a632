"""The HTTP service against the server in Python, each in a process of its own: `python -m benchmarks.http`.

Edits all at once (edits a second), then as they come, at random and in bursts (latencies from their arrival to their
end), with the engine at one thread in both; the same by a runner that sleeps, where what HTTP adds stands out; then
more than may wait, of which the rest has to be refused at once. The two take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from adapedit_engine.models.unet import OUTPUT_NAMES
from benchmarks import common

LOADS = (0.25, 0.5)
"""Of the capacity that was found, the smaller one, at which edits arrive."""
BURST = 8
PENDING = 16
"""Edits that may wait, where more are sent."""
ROLES = ("inside", "serve")


def main() -> None:
    parser = common.arguments(__doc__, steps=16, edits=32, seconds=20, repeats=3, max_rows=32, sleep=0.02)
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    parser.add_argument("--asleep", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    parser.add_argument("--pending", type=int, default=256, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.steps, options.edits, options.seconds, options.repeats = 4, 4, 1, 1
    if options.role:
        {"inside": inside, "serve": serve}[options.role](options)
        return
    data: dict[str, Any] = {}
    for name, asleep in (("model", False), ("runner that sleeps", True)):
        with Sides(options, asleep) as sides:
            data[name] = compare(sides, options)
        common.write("http", options, data, whole=False)
    with Sides(options, True, f"--pending={PENDING}") as sides:
        data["more than may wait"] = asyncio.run(
            flood(sides.url, common.unrelated(8 * PENDING, options.steps, 5000))
        )
    common.write("http", options, data)


def compare(sides: Sides, options: Any) -> dict[str, Any]:
    """Edits a second and latencies of both sides, which take turns; the median of what the turns say."""
    asked = common.unrelated(options.edits, options.steps)
    once = [0.0] * len(asked)
    rates: dict[str, list[float]] = {"inside": [], "http": []}
    for repeat in range(options.repeats + 1):
        for side in rates:
            taken = max(sides.run(side, asked, once))
            if repeat:
                rates[side].append(len(asked) / taken)
    most = {side: round(max(found), 3) for side, found in rates.items()}
    found: dict[str, Any] = {"edits_per_s": most, "http over inside": round(most["http"] / most["inside"], 3)}
    for load in LOADS:
        rate = load * min(most.values())
        count = max(BURST, round(rate * options.seconds))
        found[f"load {load}"] = {
            "arrivals_per_s": round(rate, 3),
            **{at.__name__: latencies(sides, options, at(rate, count)) for at in (at_random, bursts)},
        }
    return found


def latencies(sides: Sides, options: Any, times: list[float]) -> dict[str, Any]:
    """Of edits that come at these times, other ones each turn."""
    turns: list[dict[str, Any]] = []
    for repeat in range(options.repeats):
        coming = common.unrelated(len(times), options.steps, first=1000 * (repeat + 1))
        turns.append(
            {side: common.percentiles(sides.run(side, coming, times)) for side in ("inside", "http")}
        )
    added = [round(1000 * (turn["http"]["p95"] - turn["inside"]["p95"]), 1) for turn in turns]
    return {
        "latency_s": turns[-1],
        "p95 added by http, ms": {"median": statistics.median(added), "of": added},
    }


def at_random(rate: float, count: int) -> list[float]:
    """Times of a Poisson process, the same ones every time."""
    gaps, moment, times = random.Random(5), 0.0, []
    for _ in range(count):
        moment += gaps.expovariate(rate)
        times.append(moment)
    return times


def bursts(rate: float, count: int) -> list[float]:
    """So many at the same moment, at the same mean rate."""
    return [place // BURST * BURST / rate for place in range(count)]


class Sides:
    """Both servers, each in its process. url: of the one over HTTP."""

    def __init__(self, options: Any, asleep: bool, *flags: str) -> None:
        self._options, self._asleep, self._flags = options, asleep, flags

    def __enter__(self) -> Sides:
        self._stack = ExitStack()
        data = self._stack.enter_context(tempfile.TemporaryDirectory())
        self._inside = self._stack.enter_context(self._process("inside"))
        self._serve = self._stack.enter_context(self._process("serve", f"--data={data}", *self._flags))
        self.url = self._read(self._serve)["url"]
        self._read(self._inside)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def _process(self, role: str, *more: str) -> Iterator[subprocess.Popen[str]]:
        given = self._options
        command = [sys.executable, "-m", "benchmarks.http", "--role", role, "--model", given.model]
        command += ["--device", given.device, "--dtype", given.dtype, f"--sleep={given.sleep}"]
        command += [f"--max-rows={given.max_rows}", *more, *(["--asleep"] if self._asleep else [])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait()

    def _read(self, process: subprocess.Popen[str]) -> Any:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit("a server has ended; run it by hand: --role inside, or serve")
        return json.loads(line)

    def run(self, side: str, asked: list[Any], times: list[float]) -> list[float]:
        """Seconds of each edit from its time to its end."""
        if side == "http":
            return asyncio.run(over_http(self.url, asked, times))
        assert self._inside.stdin is not None
        wires = [each.to_wire()[0] for each in asked]
        self._inside.stdin.write(json.dumps({"asked": wires, "times": times}) + "\n")
        self._inside.stdin.flush()
        found: list[float] = self._read(self._inside)
        return found


def load(options: Any) -> Any:
    """The model; where it sleeps, with a runner and a decoder that repeat one answer for all rows, after a while."""
    model = common.pipeline(options).model
    if options.asleep:
        model.runner.infer = sleeping(model.runner.infer, options.sleep)
        decode = model.decode
        first: dict[str, Any] = {}

        def decoded(latents: Any) -> Any:
            if not first:
                first["picture"] = decode(latents[:1])
            time.sleep(options.sleep)
            return first["picture"].expand(len(latents), -1, -1, -1).clone()

        object.__setattr__(model, "decode", decoded)  # of what is frozen
    return model


def sleeping(infer: Any, seconds: float) -> Any:
    """A runner's `infer` that computes one row of each output, once, and then repeats it for as many as are asked."""
    known: dict[str, Any] = {}

    def call(inputs: Any, outputs: Any = None, **more: Any) -> dict[str, Any]:
        names = OUTPUT_NAMES if outputs is None else outputs
        if not known.keys() >= set(names):
            found = infer(inputs, outputs, **more)
            known.update({name: value[:1].clone() for name, value in found.items() if len(value)})
            return found  # type: ignore[no-any-return]
        time.sleep(seconds)
        maps = len(inputs.get("map_row", ()))
        counts = {name: len(inputs["sample"]) if name == OUTPUT_NAMES[0] else maps for name in names}
        return {name: known[name].repeat(counts[name], *[1] * (known[name].ndim - 1)) for name in names}

    return call


def inside(options: Any) -> None:
    """Run what comes on stdin in the server of Python."""
    from functools import partial

    from adapedit import EditRequest
    from adapedit.server import EditServer

    options.threads = 1
    with EditServer(load(options), max_rows=options.max_rows) as server:
        server.submit(common.request(0, 2)).result()
        print("{}", flush=True)
        for line in sys.stdin:
            given = json.loads(line)
            requests = [EditRequest.make(**fields) for fields in given["asked"]]
            ends: dict[int, float] = {}

            def ended(_: Any, place: int, ends: dict[int, float] = ends) -> None:
                ends[place] = time.monotonic()

            start, futures = time.monotonic(), []
            for place, (request, moment) in enumerate(zip(requests, given["times"], strict=True)):
                time.sleep(max(0.0, start + moment - time.monotonic()))
                futures.append(server.submit(request))
                futures[-1].add_done_callback(partial(ended, place=place))
            for future in futures:
                future.result()
            while len(ends) < len(futures):
                time.sleep(0.001)
            print(
                json.dumps([ends[i] - start - moment for i, moment in enumerate(given["times"])]), flush=True
            )


def serve(options: Any) -> None:
    """Serve over HTTP until a signal; prints the address."""
    from adapedit.http.jobs import Jobs
    from adapedit.http.process import Server, listen
    from adapedit.http.settings import ModelSource, Settings

    options.threads = 1
    source = ModelSource(name="model", source=options.model)
    flags = {"port": 0, "models": [source], "max_rows": options.max_rows, "data": options.data}
    settings = Settings.read(None, {**flags, "rate": 1e9, "burst": 10**6, "max_pending": options.pending})
    jobs = Jobs(settings, lambda _: load(options))
    server, sock = Server(settings, jobs, lambda: settings), listen(settings.host, 0)

    def say() -> None:
        while "model" not in jobs.lanes or not jobs.lanes["model"].loaded():
            time.sleep(0.01)
        print(json.dumps({"url": f"http://127.0.0.1:{sock.getsockname()[1]}"}), flush=True)

    threading.Thread(target=say, daemon=True).start()
    server.run(sockets=[sock])


def caller(url: str) -> Any:
    """A client that takes little of what is measured: a third of the processor time of httpx."""
    import aiohttp

    return aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0))


async def over_http(url: str, asked: list[Any], times: list[float]) -> list[float]:
    """Seconds of each edit from its time to the event of its end."""
    wires = [each.to_wire()[0] for each in asked]
    async with caller(url) as client:
        start = time.monotonic()

        async def one(wire: Any, moment: float) -> float:
            await asyncio.sleep(max(0.0, start + moment - time.monotonic()))
            async with client.post("/v1/edits", json=wire) as answer:
                answer.raise_for_status()
            async with client.get(f"{answer.headers['location']}/events") as told:
                last = [line async for line in told.content if line.startswith(b"event: ")][-1]
            if last != b"event: completed\n":
                raise SystemExit(f"an edit ended with {last!r}")
            return time.monotonic() - start - moment

        return list(await asyncio.gather(*(map(one, wires, times))))


async def flood(url: str, asked: list[Any]) -> dict[str, Any]:
    """Send all at once: how many were accepted, how many refused, how fast, and the longest queue that was seen."""
    wires = [each.to_wire()[0] for each in asked]
    async with caller(url) as client:

        async def one(wire: Any) -> tuple[int, float]:
            start = time.monotonic()
            async with client.post("/v1/edits", json=wire) as answer:
                return answer.status, time.monotonic() - start

        found = await asyncio.gather(*map(one, wires))
        async with client.get("/v1/edits", params={"status": "queued", "limit": 100}) as answer:
            waiting = (await answer.json())["data"]
    refused = [seconds for status, seconds in found if status == 429]
    return {
        "sent": len(found),
        "accepted": sum(status == 202 for status, _ in found),
        "refused with 429": len(refused),
        "most that waited": len(waiting),
        "may wait": PENDING,
        "refused within, s": round(max(refused, default=0.0), 3),
    }


if __name__ == "__main__":
    main()
