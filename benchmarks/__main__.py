"""Every benchmark of this machine, then the tables and plots: `python -m benchmarks`, or `make bench`.

Options go to all of them (`--quick`, `--model`, `--device`, `--results`). One that fails does not keep the rest from
running; the exit code is then 1. `--only overhead,latency` runs some. Without the benchmarks that take most
(`approximations`, in the suite's time, and `sd_shape`, in memory), which are begun by name.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import RESULTS

MODULES = (
    "overhead", "latency", "throughput", "scaling", "simulate", "memory", "soak", "neighbours",
)  # fmt: skip
"""In this order: the simulation reads what the throughput was measured to be."""


def commands(modules: Sequence[str], results: Path, options: Sequence[str]) -> list[list[str]]:
    """One command a benchmark."""
    start = [sys.executable, "-m"]
    return [[*start, f"benchmarks.{name}", "--results", str(results), *options] for name in modules]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(MODULES), help="names, separated by commas")
    parser.add_argument("--results", type=Path, default=RESULTS)
    own, options = parser.parse_known_args(arguments)
    modules = [name for name in own.only.split(",") if name]
    unknown = [name for name in modules if name not in (*MODULES, "approximations")]
    if unknown:
        parser.error(
            f"there is no benchmark {unknown[0]!r}; use some of: {', '.join(MODULES)}, approximations"
        )
    failed = []
    for name, command in zip(modules, commands(modules, own.results, options), strict=True):
        print("$", " ".join(command[1:]), file=sys.stderr, flush=True)
        start = time.perf_counter()
        code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
        print(f"{name}: {time.perf_counter() - start:.0f} s, exit code {code}", file=sys.stderr, flush=True)
        failed += [name] if code else []
    quick = ["--quick"] if "--quick" in options else []
    rendering = [sys.executable, "-m", "benchmarks.render", "--results", str(own.results), *quick]
    if subprocess.run(rendering, check=False).returncode:
        failed.append("render")
    if failed:
        print("failed:", ", ".join(failed), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
