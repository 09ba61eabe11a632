"""What calls of a model take, measured once and kept, so that edits are admitted by measured bytes.

A file of its own in the data folder for each model: measuring takes a while, and holds for one machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adapedit.model import EditModel
from adapedit.result import strict_json
from adapedit_engine.memory import CallTable, measure_call_bytes
from adapedit_kernels.errors import AdapEditError


def calibrate(model: EditModel, folder: Path, name: str, *, anew: bool) -> CallTable | None:
    """Bytes of calls by their rows: measured, if `anew`, and else as they were kept; None where nothing was.

    Raises `AdapEditError` where there is nothing to measure.
    """
    file, made_with = folder / f"calibration-{name}.json", model.made_with
    size = (model.latent_size, model.latent_size)
    if anew:
        if model.device.type != "cuda":
            raise AdapEditError(
                f"calibrate measures the memory of CUDA, and model {name} runs on {model.device}; leave it out"
            )
        with model.runner as runner:
            table = measure_call_bytes(runner, size=size, tokens=model.max_tokens)
        kept = {"made_with": made_with, "size": size, "measured": table.measured}
        part = file.with_suffix(".part")
        part.write_text(strict_json(kept), encoding="utf-8")
        part.replace(file)
        return table
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        same = found["made_with"] == made_with and found["size"] == list(size)
        measured = {int(rows): int(taken) for rows, taken in found["measured"].items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapEditError(f"{file} can't be read ({error}); measure again by --calibrate") from error
    return CallTable(measured, size) if same and measured else None
