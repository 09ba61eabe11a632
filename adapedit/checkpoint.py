"""Checkpoints in the diffusers layout: found, checked before anything is built, and read whole or not at all."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from adapedit_kernels.errors import AdapEditError

BUILTIN = Path(__file__).parent / "models" / "builtin"
COMPONENTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
WITH_WEIGHTS = ("text_encoder", "unet", "vae")
LONGEST_NAME = 200
"""Characters; more than the hub allows for a name."""
HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")


class ModelError(AdapEditError):
    """A model that is not there, is broken, or is of a kind that can't be edited."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a checkpoint is. name: as asked for; folder: on disk, or None where `name` is one of a hub.

    cached: take nothing but what was fetched from the hub before.
    """

    name: str
    folder: Path | None
    cached: bool = False

    @property
    def location(self) -> str | Path:
        """What `from_pretrained` takes."""
        return self.name if self.folder is None else self.folder


def expanded(path: str | Path) -> Path:
    """With `~` and `~user` replaced; where there is no such user it stays, as a name that nothing has."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def locate(
    source: str | Path | None, *, builtin: Path = BUILTIN, components: Sequence[str] = COMPONENTS
) -> Place:
    """The built-in model (None or "builtin"), a folder, or a hub name; raises `ModelError` for anything else.

    Of a folder the layout is looked at, and that its safetensors files are whole. components: those that are wanted
    of it; builtin: where the built-in one is.
    """
    name = "builtin" if source is None else str(source)
    folder = builtin if name == "builtin" else expanded(name)
    if _is_folder(folder):
        _check_folder(folder, components)
        return Place(name=name, folder=folder)
    if len(name) < LONGEST_NAME and HUB_NAME.fullmatch(name) and not folder.exists():
        return on_hub(name)
    raise ModelError(
        f"there is no model at {name if len(name) < LONGEST_NAME else name[:LONGEST_NAME] + '...'!r}; "
        "give 'builtin', a folder in the diffusers layout, or a hub name (owner/name)"
    )


def on_hub(
    name: str, kind: str = "a folder in the diffusers layout", file: str = "model_index.json"
) -> Place:
    """A repository of the hub, by the file that it must have; `kind`: of folder that would do as well.

    Asks once whether the hub can be reached: its own client tries for minutes, file after file.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    url = urlsplit(constants.ENDPOINT)
    reached = not constants.HF_HUB_OFFLINE
    if reached and not getproxies():
        try:
            port = url.port or (443 if url.scheme == "https" else 80)
            socket.create_connection((url.hostname or "", port), timeout=5).close()
        except OSError:
            reached = False
    if not reached and not isinstance(try_to_load_from_cache(name, file), str):
        raise ModelError(
            f"there is no folder {name!r}, and the hub at {constants.ENDPOINT} can't be reached to fetch it; "
            f"give {kind}, or try again with a connection"
        )
    return Place(name=name, folder=None, cached=not reached)


def _is_folder(path: Path) -> bool:
    """As `Path.is_dir`, but of what is too long for a path it is no folder, either."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _check_folder(folder: Path, components: Sequence[str]) -> None:
    missing = [part for part in components if not (folder / part).is_dir()]
    if not (folder / "model_index.json").is_file() or missing:
        what = f"no {', '.join(missing)}" if missing else "no model_index.json"
        raise ModelError(
            f"{folder} is no Stable Diffusion checkpoint in the diffusers layout ({what}); "
            "save one with StableDiffusionPipeline.save_pretrained"
        )
    for part in WITH_WEIGHTS:
        if part in components:
            check_weights(folder / part)


def check_weights(folder: Path) -> None:
    """Raise `ModelError` unless `folder` has safetensors files, each of them whole."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(
            f"{folder} has no .safetensors file and pickled weights are never read; "
            "save the model with safe_serialization=True"
        )
    for path in weights:
        try:
            # Compares the header with the length of the file, too.
            with safe_open(path, "pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is corrupt or cut short ({error}); copy it again") from error


def read_part(place: Place, part: str, kind: Any, **options: Any) -> Any:
    """One component, by its class's `from_pretrained`; raises `ModelError` where it can't be built from the files.

    It is in the folder `part` unless `subfolder` is given ("": the checkpoint has no other component).
    """
    options.setdefault("subfolder", part)
    modular = issubclass(kind, nn.Module)
    if place.cached:
        options["local_files_only"] = True
    if modular:
        options |= {"use_safetensors": True, "output_loading_info": True}
    try:
        with _quiet_libraries():
            read = kind.from_pretrained(place.location, **options)
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"the {part} of model {place.name!r} can't be loaded: {reason}") from error
    if not modular:
        return read
    module, info = read
    # Both libraries fill up what a file lacks with random numbers, and only say so in the log.
    absent = sorted(info.get("missing_keys", ()))
    if absent:
        raise ModelError(
            f"the {part} of model {place.name!r} lacks {len(absent)} of its weights, {absent[0]} among them; "
            "copy the model again"
        )
    _check_numbers(module, part, place)
    return module


def _check_numbers(module: nn.Module, part: str, place: Place) -> None:
    for name, weight in module.named_parameters():
        # A sum costs one pass and no memory, and no infinity or NaN is lost in it.
        if not bool(weight.detach().sum(dtype=torch.float32).isfinite()):
            raise ModelError(
                f"the {part} of model {place.name!r} has numbers in {name} that are none (NaN or infinite); "
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
