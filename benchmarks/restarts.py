"""`adapedit batch` killed again and again, and its cache of inversions cut short in between: a part of the soak."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import common

BROKEN = '{"source_prompt": "a red dog"'
START = (sys.executable, "-W", "ignore", "-c", "from adapedit.cli import main; main()", "batch")
PATIENCE = 300.0  # seconds that a run may take to finish one more edit


def killed_and_begun_again(
    pipe: Any, folder: Path, *, model: str, edits: int, steps: int, kills: int, check_every: int
) -> dict[str, Any]:
    """Run a file of `edits` lines and one that is none, killed `kills` times, and compare with an undisturbed run.

    Every third edit begins with a picture, whose inversion is kept in a cache; after each kill one of its files is cut
    short. check_every: of the edits, every n-th is compared.
    """
    random_ = random.Random(0)
    cache, out, file = folder / "cache", folder / "out", folder / "requests.jsonl"
    requests = _requests(pipe, folder, cache, edits, steps)
    lines = [json.dumps(each) for each in requests]
    file.write_text("\n".join([*lines, BROKEN]) + "\n", encoding="utf-8")
    command = [*START, str(file), "--model", model, "--out", str(out), "--max-rows", "8", "--json"]
    cut = 0
    for _ in range(kills):
        _run_and_kill(command, out, more=random_.randint(1, max(1, edits // (2 * kills))))
        kept = sorted(cache.glob("*.safetensors"))
        if kept:
            victim = random_.choice(kept)
            victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
            cut += 1
    before = _finished(out)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told = json.loads(done.stdout.splitlines()[-1])
    wrong = []
    if done.returncode != 1 or list(told["failures"]) != [f"{edits + 1:05d}"]:
        wrong.append(f"wanted exit code 1 and one failure, the broken line: {done.returncode}, {told}")
    if (told["skipped"], told["done"]) != (before, edits - before):
        wrong.append(f"{before} of {edits} were finished: {told}")
    wanted = {*(f"{place + 1:05d}" for place in range(edits)), "failures.jsonl"}
    if {path.name for path in out.iterdir()} != wanted:
        wrong.append(f"{out} holds {sorted(path.name for path in out.iterdir())}")
    apart = max(_apart(pipe, requests[i], out / f"{i + 1:05d}") for i in range(0, edits, check_every))
    if apart > 1:
        wrong.append(f"a picture differs from the undisturbed run by {apart} grey levels")
    return {
        "edits": edits,
        "kills": kills,
        "finished_before_last_run": before,
        "cache_files_cut_short": cut,
        "largest_difference_grey_levels": apart,
        "wrong": wrong,
    }


def _requests(pipe: Any, folder: Path, cache: Path, edits: int, steps: int) -> list[dict[str, Any]]:
    pictures = []
    for place in range(2):
        (result,) = pipe.edit_batch([common.request(place, steps)])
        pictures.append(folder / f"picture-{place}.png")
        result.source_image.save(pictures[-1])
    found = []
    for place in range(edits):
        asked = common.request(place, steps + place % 3)
        fields = {
            name: getattr(asked, name)
            for name in ("source_prompt", "target_prompt", "seed", "num_inference_steps")
        }
        if place % 3 == 0:
            which = place % 2
            fields |= {
                "source_prompt": common.PAIRS[which][0],
                "image": str(pictures[which]),
                "inversion": {"name": "null-text", "inner_steps": 2, "cache": str(cache)},
            }
        found.append(fields)
    return found


def _run_and_kill(command: list[str], out: Path, *, more: int) -> None:
    """Kill the run without warning once it has finished so many more edits."""
    wanted = _finished(out) + more
    environment = {**os.environ, "PYTHONPATH": str(common.ROOT)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + PATIENCE
    try:
        while _finished(out) < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _finished(out: Path) -> int:
    return len(list(out.glob("*/edit.json")))


def _apart(pipe: Any, fields: dict[str, Any], folder: Path) -> int:
    from adapedit import EditRequest

    if "inversion" in fields:
        fields = {**fields, "inversion": {**fields["inversion"], "cache": "off"}}
    (alone,) = pipe.edit_batch([EditRequest.make(**fields)])
    largest = 0
    for name in ("source", "target"):
        stored = np.asarray(Image.open(folder / f"{name}.png").convert("RGB"), np.int16)
        one = np.asarray(getattr(alone, f"{name}_image"), np.int16)
        largest = max(largest, int(np.abs(one - stored).max()))
    return largest
