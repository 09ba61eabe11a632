"""All that only a CUDA device can say, within a time: `python -m benchmarks.gpu --results DIR [--seconds N]`.

In the order of what has to be known first: kernels beside their references; steps, edits, throughput and arrivals at
Stable Diffusion v1.4's shape, with random weights that are made there; the C example; then what takes longer to say.
Each part has a process and a limit of its own, and one that fails or is cut does not keep the rest from running; what
was done until then stays in the folder. `gpu.json` there says, and is written anew after every part, how each ended.
Runs with any Python that has the packages, installed or not; no network is asked for. Exits with 2 where there is no
CUDA device, with 1 where a part failed, was cut or not begun.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from benchmarks.common import RESULTS, ROOT

STABLE_DIFFUSION = "sd-v1-shape"
"""Of `benchmarks.shapes`, which imports diffusers."""

ROOMS = (ROOT, ROOT / "kernels", ROOT / "engine", ROOT / "export")
TESTS = {"kernels": "tests/kernels/test_gpu.py", "edits": "tests/adapedit/test_gpu_edits.py"}
C_EXAMPLE = """set -e; folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
cmake -S {root} -B "$folder" -DPython3_EXECUTABLE={python} -DADAPEDIT_KERNELS_EXAMPLES=ON \\
    -DADAPEDIT_KERNELS_SET=few -DADAPEDIT_KERNELS_TARGETS={target} -DADAPEDIT_KERNELS_JOBS=8 >/dev/null
cmake --build "$folder" >/dev/null
find "$folder" -type f -name adapedit_kernels_attention -exec {{}} +"""
LEAST, GRACE = 15.0, 10.0
"""Seconds: what a part is begun with at least, and what one has to end in after it was told to."""
SAID = 6000
"""Characters of what a part says that are kept, from its end."""


class Part(NamedTuple):
    """seconds: after which it is cut."""

    name: str
    seconds: float
    command: tuple[str, ...]


def parts(results: Path, options: Sequence[str], target: str = "90") -> list[Part]:
    """Tests and benchmarks; ``options`` (``--quick``, ``--model``) go to all of the latter.

    target: compute capability, for which the C library is compiled.
    """
    python = (sys.executable, "-m")
    # -q is among the project's own options: -vv leaves a line a test.
    pytest = (*python, "pytest", "-vv", "-m", "gpu", "--tb=short", "-p", "no:cacheprovider")
    given = ("--device", "cuda", "--dtype", "float16", "--results", str(results), *options)

    def benchmark(name: str, seconds: float, *more: str) -> Part:
        return Part(name, seconds, (*python, f"benchmarks.{name}", *given, *more))

    def tests(name: str, seconds: float) -> Part:
        return Part(f"tests-{name}", seconds, (*pytest, TESTS[name]))

    shape = ("--model", STABLE_DIFFUSION)
    return [
        tests("kernels", 90),
        benchmark("steps", 210, *shape),
        Part(
            "c-example", 60, ("sh", "-c", C_EXAMPLE.format(root=ROOT, python=sys.executable, target=target))
        ),
        tests("edits", 90),
        benchmark("kernels", 60),
        benchmark("latency", 150, *shape),
        benchmark("serving", 120, "--max-rows", "64", "--static-rows", "64"),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    import torch

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seconds", type=float, default=360.0, help="that all parts may take together")
    parser.add_argument("--only", help="names of parts, separated by commas")
    own, options = parser.parse_known_args(arguments)
    has_device = torch.cuda.is_available()
    target = "{}{}".format(*torch.cuda.get_device_capability()) if has_device else "90"
    wanted = parts(own.results.resolve(), options, target)
    names = [part.name for part in wanted] if own.only is None else own.only.split(",")
    if unknown := set(names) - {part.name for part in wanted}:
        parser.error(
            f"there is no part {min(unknown)!r}; use some of: {', '.join(part.name for part in wanted)}"
        )
    if not has_device:
        print("benchmarks.gpu needs a CUDA device and found none", file=sys.stderr)
        return 2
    found = run_all([part for part in wanted if part.name in names], own.results, own.seconds)
    return 0 if all(part["ended"] == "well" for part in found.values()) else 1


def run_all(wanted: Sequence[Part], results: Path, seconds: float) -> dict[str, Any]:
    """Run what the time allows, one after the other, and write down how each ended."""
    results.mkdir(parents=True, exist_ok=True)
    end, found = time.monotonic() + seconds, dict[str, Any]()
    for part in wanted:
        left = end - time.monotonic() - GRACE
        found[part.name] = run(part, min(part.seconds, left)) if left >= LEAST else {"ended": "not begun"}
        print(f"{part.name}: {found[part.name]['ended']}", file=sys.stderr, flush=True)
        (results / "gpu.json").write_text(json.dumps({"parts": found}, indent=1) + "\n", encoding="utf-8")
    return found


def run(part: Part, seconds: float) -> dict[str, Any]:
    """How it ended ("well", "with code n" or "cut"), after how many seconds, what it said, and tests by outcome."""
    start = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        code = _code(part.command, seconds, output)
        output.seek(0)
        text = output.read()
    ended = "cut" if code is None else "well" if code == 0 else f"with code {code}"
    found = {"ended": ended, "seconds": round(time.monotonic() - start, 1), "said": text[-SAID:]}
    return {**found, "tests": outcomes(text)} if "pytest" in part.command else found


def outcomes(text: str) -> dict[str, Any]:
    """How many tests had each outcome, and the names of those that did not pass, from what pytest -v says."""
    lines = re.findall(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)\b", text, re.MULTILINE)
    by_outcome = [outcome.lower() for _, outcome in lines]
    failed = sorted({name for name, outcome in lines if outcome in ("FAILED", "ERROR")})
    return {**{name: by_outcome.count(name) for name in sorted(set(by_outcome))}, "not passed": failed}


def _code(command: Sequence[str], seconds: float, output: IO[str]) -> int | None:
    """The exit code, or None of a process that was cut: it and what it started are told to end, then ended."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=_environment(os.environ),
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # pytest then tells what failed until now
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environment(before: Mapping[str, str]) -> dict[str, str]:
    paths = [*map(str, ROOMS), *filter(None, [before.get("PYTHONPATH")])]
    return {**before, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


if __name__ == "__main__":
    sys.exit(main())
