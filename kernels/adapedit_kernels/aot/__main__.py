"""``python -m adapedit_kernels.aot``: compile the kernels, print what they take, write the C library's sources."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from adapedit_kernels.aot.compile import Binary, compile_all
from adapedit_kernels.aot.embed import write_sources
from adapedit_kernels.aot.variants import TARGETS, all_variants, few_variants


def main() -> int:
    parser = argparse.ArgumentParser(prog="adapedit_kernels.aot", description=__doc__)
    parser.add_argument("--out", type=Path, help="write the C sources and manifest.json here")
    parser.add_argument(
        "--set", choices=("all", "few"), default="all", help="all variants, or one of each kind"
    )
    parser.add_argument(
        "--targets", default=",".join(map(str, TARGETS)), help="compute capabilities, e.g. 80,90"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes that compile")
    parser.add_argument("--list", action="store_true", help="print the variants' names and leave")
    options = parser.parse_args()
    variants = all_variants() if options.set == "all" else few_variants()
    if options.list:
        print("\n".join(f"{variant.name} {variant.block}" for variant in variants))
        return 0
    targets = [int(target) for target in options.targets.split(",")]
    if unknown := set(targets) - set(TARGETS):
        parser.error(f"--targets names {sorted(unknown)}; known are {', '.join(map(str, TARGETS))}")

    binaries: list[Binary] = []
    for binary in compile_all(variants, targets, options.jobs):
        binaries.append(binary)
        done = f"{len(binaries)}/{len(variants) * len(targets)}"
        print(f"{done} {binary.variant.name} sm_{binary.target}", file=sys.stderr, flush=True)
    print("registers a thread / bytes of shared memory a program / bytes spilled\n")
    print(report(binaries))
    if options.out:
        write_sources(binaries, options.out)
    spilling = [f"{b.variant.name} for sm_{b.target}: {b.spilled}" for b in binaries if b.spilled]
    if spilling:
        print("bytes spilled, where none may be: " + "; ".join(spilling), file=sys.stderr)
    return 1 if spilling else 0


def report(binaries: Iterable[Binary]) -> str:
    """A Markdown table, a line a variant: registers / shared memory / spilled bytes for each target.

    binaries: in the order of `compile_all`.
    """
    lines = [list(line) for _, line in groupby(binaries, key=lambda binary: binary.variant)]
    text = ["| variant | block | warps | " + " | ".join(f"sm_{binary.target}" for binary in lines[0]) + " |"]
    text.append("|---|" + "---:|" * (len(lines[0]) + 2))
    for line in lines:
        variant, warps = line[0].variant, line[0].num_warps
        cells = [f"{binary.registers} / {binary.shared} / {binary.spilled}" for binary in line]
        text.append(f"| `{variant.name}` | {variant.block} | {warps} | {' | '.join(cells)} |")
    return "\n".join(text)


if __name__ == "__main__":
    sys.exit(main())
