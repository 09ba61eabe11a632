"""What all benchmarks share: machine, versions and commit beside every number, interleaved timing, JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "diffusers", "transformers", "onnxruntime", "triton", "numpy")
PAIRS = (
    ("a red dog standing on the grass", "a red dog sitting on the grass"),
    ("a blue cat sitting on the snow", "a blue cat standing on the snow"),
    ("a small red dog standing on the grass", "a small red dog standing on the snow"),
    ("a green bird standing on the grass", "a red bird standing on the grass"),
)


def arguments(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """The options of every benchmark. defaults: of `--steps`, `--repeats` and the like."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small run that shows that the script works")
    parser.add_argument("--model", default="builtin", help="builtin, sd-v1-shape, a folder or a hub name")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--threads", type=int, default=None, help="of PyTorch, by default its own choice")
    parser.add_argument("--results", type=Path, default=RESULTS)
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    return parser


def pipeline(options: argparse.Namespace, dtype: str | None = None) -> Any:
    """The pipeline that the options name; dtype: of the weights, in place of theirs.

    On CUDA products of float32 are then in float32: by default convolutions take TF32, which keeps 10 bits.
    """
    import torch

    from adapedit.loading import load_any
    from adapedit.pipeline import AdapEditPipeline
    from benchmarks.shapes import folder_of

    if options.threads:
        torch.set_num_threads(options.threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    model = load_any(
        folder_of(options.model), device=options.device, dtype=getattr(torch, dtype or options.dtype)
    )
    return AdapEditPipeline(model)


def request(place: int, steps: int, **fields: Any) -> Any:
    """One of a series of unrelated edits."""
    from adapedit import EditRequest

    source, target = PAIRS[place % len(PAIRS)]
    known = {"source_prompt": source, "target_prompt": target, "seed": place, "num_inference_steps": steps}
    return EditRequest(**{**known, **fields})


def lengths(most: int) -> tuple[int, ...]:
    """Steps that unrelated edits ask for, each as often as the others: from a look at what comes to the whole."""
    return tuple(max(1, most // divisor) for divisor in (8, 4, 2, 1))


def unrelated(count: int, most_steps: int, first: int = 0) -> list[Any]:
    """Edits with nothing in common: other prompts, seeds, steps and methods, the same ones every time."""
    from adapedit.methods import AdapEdit, PromptToPrompt

    methods = (AdapEdit(two_pass=True), AdapEdit(two_pass=True), AdapEdit(), PromptToPrompt())
    random_ = random.Random(first)
    return [
        request(place, random_.choice(lengths(most_steps)), method=random_.choice(methods))
        for place in range(first, first + count)
    ]


def grey_levels(one: Any, other: Any) -> int:
    """The largest difference between two results' pictures."""
    import numpy as np

    pairs = ((one.source_image, other.source_image), (one.target_image, other.target_image))
    return max(int(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max()) for a, b in pairs)


def gate(apart: int) -> int:
    """Ways whose pictures differ by more than a grey level do different things: nothing is timed then."""
    if apart > 1:
        raise SystemExit(f"parity: pictures differ by {apart} grey levels, wanted 1 at most: not timed")
    return apart


def timed(
    variants: Mapping[str, Callable[[], Any]], repeats: int, wait: Callable[[], None] = lambda: None
) -> dict[str, dict[str, Any]]:
    """Seconds of every variant, one after the other and round again, so that a noisy machine is fair to all.

    After a first round that does not count. wait: until the device is done. `processor_s` is the process's
    time on all cores: on a busy machine it says more than the wall clock.
    """
    wall: dict[str, list[float]] = {name: [] for name in variants}
    processor: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        for name, run in variants.items():
            wait()
            used, start = time.process_time(), time.perf_counter()
            run()
            wait()
            if repeat:
                wall[name].append(time.perf_counter() - start)
                processor[name].append(time.process_time() - used)
    return {name: {**summary(wall[name]), "processor_s": least(processor[name])} for name in variants}


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Least, median and largest of some times."""
    return {
        "least_s": least(seconds),
        "median_s": round(statistics.median(seconds), 5),
        "most_s": round(max(seconds), 5),
        "runs": len(seconds),
    }


def least(seconds: Sequence[float]) -> float:
    return round(min(seconds), 5)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99, nearest rank, and the mean."""
    ordered = sorted(values)

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 4)

    return {"mean": round(statistics.fmean(ordered), 4), "p50": at(0.5), "p95": at(0.95), "p99": at(0.99)}


def waiting(device: str) -> Callable[[], None]:
    """What makes the host wait for the device."""
    import torch

    return torch.cuda.synchronize if device.startswith("cuda") else lambda: None


def environment(options: argparse.Namespace) -> dict[str, Any]:
    """Machine, versions, commit, date and the options."""
    import torch

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    # Where results go is of no one's concern.
    said = [
        word
        for word, before in zip(sys.argv[1:], sys.argv, strict=False)
        if "--results" not in (word, before)
    ]
    gpu = torch.cuda.get_device_name() if options.device.startswith("cuda") else None
    return {
        "machine": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "threads": torch.get_num_threads(),
            "gpu": gpu,
            "load": [round(value, 1) for value in os.getloadavg()],
        },
        "versions": {"python": platform.python_version(), **versions},
        "commit": _git("rev-parse", "--short", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *said]),
        "options": {name: str(value) for name, value in vars(options).items() if name != "results"},
    }


def write(name: str, options: argparse.Namespace, data: Mapping[str, Any], whole: bool = True) -> Path:
    """Write `file_name`'s file below the results, and the same on stdout.

    whole: otherwise what is known so far, into a file that ends in `.part.json` and goes when the whole is written.
    """
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / file_name(name, options.device, options.quick)
    text = json.dumps({"benchmark": name, **environment(options), **data}, indent=1)
    part = path.with_suffix(".part.json")
    if not whole:
        part.write_text(text + "\n", encoding="utf-8")
        return part
    path.write_text(text + "\n", encoding="utf-8")
    part.unlink(missing_ok=True)
    print(text)
    print(f"written to {path}", file=sys.stderr)
    return path


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def file_name(name: str, device: str, quick: bool) -> str:
    """`<name>.json`; `.cuda` before the ending for runs on a GPU, which do not replace the CPU's, and `.quick`."""
    return f"{name}{'.cuda' if device.startswith('cuda') else ''}{'.quick' if quick else ''}.json"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:  # a copy of the files on a machine without git
        return ""
    return done.stdout.strip()
