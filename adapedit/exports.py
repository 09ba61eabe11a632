"""Bundles of checkpoints in the user's cache: made once, for the runners that take no checkpoint."""

from __future__ import annotations

import hashlib
import logging
import os
from importlib.metadata import version
from pathlib import Path

import torch

from adapedit.checkpoints import Source, locate
from adapedit.configs import ModelError
from adapedit.loading import load_model
from adapedit.model import checkpoint_of
from adapedit_engine.manifest import FORMAT, MANIFEST_FILE
from adapedit_export.export import export_bundle
from adapedit_export.options import ExportOptions, Precision

PRECISIONS = {torch.float32: Precision.FLOAT32, torch.float16: Precision.FLOAT16}
log = logging.getLogger("adapedit")


def cache_folder() -> Path:
    """Where bundles are kept: `adapedit/bundles` in `XDG_CACHE_HOME`, by default `~/.cache`. It may be removed."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adapedit" / "bundles"


def cached_bundle(source: Source | str | Path | None, dtype: torch.dtype | None = None) -> Path:
    """The bundle of a checkpoint, exported unless it is there; the first time is said at the level of warnings.

    source: as `load_model` takes it. dtype: float32 (None) or float16. A checkpoint that was changed is exported again.
    Raises what loading and exporting raise.
    """
    precision = PRECISIONS.get(dtype or torch.float32)
    if precision is None:
        known = ", ".join(str(name) for name in PRECISIONS)
        raise ModelError(f"dtype is {dtype}, and a bundle is made in {known}; leave --dtype out")
    source = Source.of(source)
    if source.is_file:
        raise ModelError(
            f"{source.name} is a single file, of which no bundle is kept; make one: adapedit export {source.name}"
        )
    found = locate(source)
    name, folder = found.name, found.path
    facts = [
        f"{FORMAT} {precision.value} {sorted(found.variants.items())}",
        *(f"{part} {version(part)}" for part in ("adapedit", "torch", "onnx")),
    ]
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        about = path.stat()
        facts.append(f"{path.relative_to(folder)} {about.st_size} {about.st_mtime_ns}")
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    out = cache_folder() / f"{Path(name).name}-{digest}"
    if not (out / MANIFEST_FILE).is_file():
        log.warning("adapedit: exporting %s once, into %s; it is taken from there the next time", name, out)
        options = ExportOptions(precision=precision, check_steps=0)
        export_bundle(checkpoint_of(load_model(source, device="cpu")), out, options)
    return out
