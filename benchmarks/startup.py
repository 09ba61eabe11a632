"""How long `import adapedit` and `adapedit --help` take, and what costs most: `python -m benchmarks.startup`.

Each is run in fresh interpreters; the least of them is what the code costs, the median what a busy machine makes of it.
Prints JSON; nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

GOALS = {"import adapedit": 0.3, "adapedit --help": 0.5}
HELP = "from adapedit.cli.entry import run; run(['--help'])"


def timed(arguments: list[str], runs: int) -> dict[str, float]:
    """Seconds of a fresh interpreter, by the wall and the processor, over `runs` runs after a first."""
    wall, processor = [], []
    for run in range(runs + 1):
        used, start = _children(), time.perf_counter()
        subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
        if run:
            wall.append(time.perf_counter() - start)
            processor.append(_children() - used)
    return {
        "least_s": round(min(wall), 4),
        "median_s": round(statistics.median(wall), 4),
        "processor_s": round(statistics.median(processor), 4),
    }


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def slowest_imports(code: str, most: int = 8) -> list[dict[str, Any]]:
    """The modules that `code` spends most time in, themselves, by `-X importtime`."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True
    )
    found = []
    for line in done.stderr.splitlines():
        own, _, rest = line.removeprefix("import time:").partition("|")
        if own.strip().isdigit():
            found.append((int(own), rest.rpartition("|")[2].strip()))
    return [
        {"module": name, "own_ms": round(own / 1000, 1)} for own, name in sorted(found, reverse=True)[:most]
    ]


def measure(runs: int) -> dict[str, Any]:
    """Everything, with the machine that it was measured on."""
    results = {
        "python -c pass": timed(["-c", "pass"], runs),
        "import adapedit": {
            **timed(["-c", "import adapedit"], runs),
            "slowest": slowest_imports("import adapedit"),
        },
        "adapedit --help": {**timed(["-c", HELP], runs), "slowest": slowest_imports(HELP)},
    }
    return {
        "benchmark": "startup",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("adapedit", "typer", "rich")},
        },
        "runs": runs,
        "goals_s": GOALS,
        "results": results,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    print(json.dumps(measure(parser.parse_args().runs), indent=2))


if __name__ == "__main__":
    main()
