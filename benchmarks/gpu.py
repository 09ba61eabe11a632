"""All benchmarks that a CUDA device has something to say about, one after the other: `python -m benchmarks.gpu`.

Each writes its JSON below `benchmarks/results/`. One that fails does not keep the rest from running. Exits with 2
where there is no CUDA device, with 1 where a benchmark failed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

MODULES = ("kernels", "trace", "overhead", "latency", "throughput", "scaling", "neighbours")


def commands(options: Sequence[str]) -> list[list[str]]:
    """One command a benchmark; ``options`` (``--quick``, ``--model``, ``--results``) go to all of them."""
    device = ("--device", "cuda", "--dtype", "float16")
    return [[sys.executable, "-m", f"benchmarks.{name}", *device, *options] for name in MODULES]


def main(options: Sequence[str]) -> int:
    import torch

    if not torch.cuda.is_available():
        print("benchmarks.gpu needs a CUDA device and found none", file=sys.stderr)
        return 2
    failed = []
    for command in commands(options):
        print("$", " ".join(command[1:]), flush=True)
        if subprocess.run(command, check=False).returncode:
            failed.append(command[2])
    if failed:
        print("failed:", ", ".join(failed), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
