"""All stages in order, each resuming where it was stopped: reader, model, publication, and the UNet that edits."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

OUT = Path("out/training")

STAGES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("data", ("--out", str(OUT / "scenes"), "--count", "36000")),
    ("vae", ("--steps", "4400")),
    ("reader", ("--steps", "2000")),
    ("generator", ("--count", "24000", "--steps", "5000")),
    ("vae", ("--decoder-only", "--from", str(OUT / "vae"), "--out", str(OUT / "decoder"), "--steps", "1200")),
    ("publish", ("--vae", str(OUT / "decoder"))),
    ("evaluate", ()),
    ("pairs", ("--count", "10000")),
    ("pix2pix", ("--steps", "4000")),
)


def main() -> None:
    plan = "\n".join(f"  python -m adapedit.training.{stage} {' '.join(given)}" for stage, given in STAGES)
    # Hours of work must not begin because somebody asked what would happen.
    argparse.ArgumentParser(
        prog="python -m adapedit.training",
        description=__doc__,
        epilog=f"stages, each with its own --help:\n{plan}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    for stage, arguments in STAGES:
        if stage == "data" and (OUT / "scenes" / "images.npy").exists():
            continue
        command = [sys.executable, "-m", f"adapedit.training.{stage}", *arguments]
        print(" ".join(command[1:]), flush=True)
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
