"""Where a checkpoint is, and whether it is whole: looked at before anything is built of it, or a weight is read."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from adapedit.configs import INDEX_FILE, ModelError, read_index
from adapedit.families import OTHERS, STABLE_DIFFUSION_XL, SUPPORTED
from adapedit_engine.manifest import MANIFEST_FILE

BUILTIN = Path(__file__).parent / "builtin"
MAX_NAME = 200
"""Characters; more than the hub allows for a name."""
HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")


def expanded(path: str | Path) -> Path:
    """With `~` and `~user` replaced; where there is no such user it stays, as a name that nothing has."""
    if not isinstance(path, (str, os.PathLike)):
        raise ModelError(f"folder is {path!r}, wanted a path")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def is_bundle(source: str | Path | None) -> bool:
    """Whether `source` is the folder of a bundle, whole or not."""
    return source is not None and os.path.isfile(expanded(source) / MANIFEST_FILE)


def locate(source: str | Path | None) -> tuple[str, Path]:
    """Name and folder of the built-in model (None or "builtin"), a folder, or a hub name.

    Raises `ModelError` for anything else. The layout is looked at, and that safetensors files are whole.
    """
    name = "builtin" if source is None else str(source)
    folder = BUILTIN if name == "builtin" else expanded(name)
    if is_bundle(folder):
        raise ModelError(
            f"{folder} is a bundle; open it with AdapEditPipeline.from_bundle, or --model with --runner"
        )
    if not os.path.isdir(folder):
        if len(name) >= MAX_NAME or not HUB_NAME.fullmatch(name) or os.path.exists(folder):
            raise ModelError(
                f"there is no model at {name[:MAX_NAME]!r}; give 'builtin', a folder in the diffusers layout, or a hub "
                "name (owner/name)"
            )
        folder = _fetched(name)
    _check_folder(folder)
    return name, folder


def _fetched(name: str) -> Path:
    """The folder of a hub's model, with nothing but what is read of it.

    Asks once whether the hub can be reached: its own client tries for minutes, file after file.
    """
    from huggingface_hub import constants, snapshot_download

    url, reached = urlsplit(constants.ENDPOINT), not constants.HF_HUB_OFFLINE
    if reached and not getproxies():
        try:
            port = url.port or (443 if url.scheme == "https" else 80)
            socket.create_connection((url.hostname or "", port), timeout=5).close()
        except OSError:
            reached = False
    wanted = ["*.json", "*.txt", *(f"{part}/*.safetensors" for part in STABLE_DIFFUSION_XL.with_weights)]
    try:
        return Path(
            snapshot_download(
                name, allow_patterns=wanted, ignore_patterns="*.*.safetensors", local_files_only=not reached
            )
        )
    except Exception as error:
        if not reached:
            raise ModelError(
                f"there is no folder {name!r}, and the hub at {constants.ENDPOINT} can't be reached to fetch it; "
                "give a folder in the diffusers layout, or try again with a connection"
            ) from error
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"model {name!r} can't be fetched ({reason}); give a folder instead") from error


def _check_folder(folder: Path) -> None:
    index = read_index(folder)
    for prefix, other in OTHERS.items():
        if index.class_name.startswith(prefix):
            raise ModelError(
                f"{folder} is a checkpoint of {other} ({index.class_name}), which is not supported yet; give one of "
                f"{SUPPORTED}"
            )
    family = index.family
    missing = [part for part in family.components if not (folder / part).is_dir()]
    if not (folder / INDEX_FILE).is_file() or missing:
        what = f"no {', '.join(missing)}" if missing else f"no {INDEX_FILE}"
        raise ModelError(
            f"{folder} is no {family.name} checkpoint in the diffusers layout ({what}); "
            f"save one with {family.pipeline}Pipeline.save_pretrained"
        )
    for part in family.with_weights:
        _check_weights(folder / part)


def _check_weights(folder: Path) -> None:
    """Raise `ModelError` unless `folder` has safetensors files under the names that are read, each of them whole."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(
            f"{folder} has no .safetensors file and pickled weights are never read; "
            "save the model with safe_serialization=True"
        )
    named = [path for path in weights if path.name.count(".") == 1]
    if not named:
        raise ModelError(
            f"{folder} has {weights[0].name} alone, a variant; save the model without one, or rename the file to "
            f"{weights[0].name.split('.')[0]}.safetensors"
        )
    for path in named:
        try:
            # Compares the header with the length of the file, too.
            with safe_open(path, "pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is corrupt or cut short ({error}); copy it again") from error


def read_part(folder: Path, part: str, kind: Any, **options: Any) -> Any:
    """One component, by its class's `from_pretrained`; raises `ModelError` where it can't be built from the files."""
    modular = issubclass(kind, nn.Module)
    if modular:
        options |= {"use_safetensors": True, "output_loading_info": True}
    try:
        with torch.device("cpu"), _quiet_libraries():
            read = kind.from_pretrained(folder, subfolder=part, **options)
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"the {part} of model {str(folder)!r} can't be loaded: {reason}") from error
    if not modular:
        return read
    module, info = read
    # Both libraries fill up what a file lacks with random numbers, leave out what they know no place for, and only say
    # so in the log.
    absent, spare = (sorted(info.get(name, ())) for name in ("missing_keys", "unexpected_keys"))
    if absent:
        raise ModelError(
            f"the {part} of model {str(folder)!r} lacks {len(absent)} of its weights, {absent[0]} among them; "
            "copy the model again"
        )
    spare = [name for name in spare if not name.endswith("position_ids")]
    if spare:
        raise ModelError(
            f"the {part} of model {str(folder)!r} has {len(spare)} weights that it has no place for, {spare[0]} among "
            "them; if these are a LoRA's, merge it (fuse_lora) before saving"
        )
    _check_numbers(module, part, folder)
    return module


def _check_numbers(module: nn.Module, part: str, folder: Path) -> None:
    for name, weight in module.named_parameters():
        # A sum costs one pass and no memory, and no infinity or NaN is lost in it.
        if not bool(weight.detach().sum(dtype=torch.float32).isfinite()):
            raise ModelError(
                f"the {part} of model {str(folder)!r} has numbers in {name} that are none (NaN or infinite); "
                "copy the model again"
            )


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Without their progress bars and their reports of missing weights, which are errors here."""
    import diffusers.utils.logging as of_diffusers
    import transformers.utils.logging as of_transformers

    libraries = (of_diffusers, of_transformers)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity(library.CRITICAL)
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, (level, bars) in zip(libraries, before, strict=True):
            library.set_verbosity(level)
            if bars:
                library.enable_progress_bar()
