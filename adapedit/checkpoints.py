"""Where a checkpoint is, and whether it is whole: looked at before anything is built of it, or a weight is read."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from adapedit.configs import INDEX_FILE, ModelError, read_index
from adapedit.families import OTHERS, STABLE_DIFFUSION_XL, SUPPORTED, Family
from adapedit_engine.manifest import MANIFEST_FILE

BUILTIN = Path(__file__).parent / "builtin"
MAX_NAME = 200
"""Characters; more than the hub allows for a name."""
HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint, and which of its weights. place: None or "builtin", a folder, a hub name, a file of weights.

    variant: the word in the names of weight files ("fp16", "non_ema"); a part that has none of these is read without.
    revision, local_files_only: of a hub's model. config, tokenizer: of a file, see `single_files`.
    """

    place: str | Path | None = None
    variant: str | None = None
    revision: str | None = None
    local_files_only: bool = False
    config: str | Path | None = None
    tokenizer: Any = None

    @classmethod
    def of(cls, source: Source | str | Path | None) -> Source:
        """A place alone, or what it is already."""
        return source if isinstance(source, Source) else cls(place=source)

    @property
    def name(self) -> str:
        return "builtin" if self.place is None else str(self.place)

    @property
    def is_file(self) -> bool:
        """Whether it is a file of weights, there or not."""
        ends = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
        return self.name.endswith(ends) and not expanded(self.name).is_dir()


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A checkpoint in the diffusers layout that was looked at. variants: of the parts that are read in one."""

    name: str
    path: Path
    variants: Mapping[str, str]


def expanded(path: str | Path) -> Path:
    """With `~` and `~user` replaced; where there is no such user it stays, as a name that nothing has."""
    if not isinstance(path, (str, os.PathLike)):
        raise ModelError(f"folder is {path!r}, wanted a path")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def is_bundle(source: Source | str | Path | None) -> bool:
    """Whether `source` is the folder of a bundle, whole or not."""
    place = Source.of(source).place
    return place is not None and os.path.isfile(expanded(place) / MANIFEST_FILE)


def locate(source: Source | str | Path | None) -> Folder:
    """The built-in model (None or "builtin"), a folder, or what a hub has of a name.

    Raises `ModelError` for anything else. The layout is looked at, and that safetensors files are whole.
    """
    source = Source.of(source)
    name = source.name
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
        folder = _fetched(source)
    return Folder(name=name, path=folder, variants=_check_folder(folder, source.variant))


def _fetched(source: Source) -> Path:
    """The folder of a hub's model, with nothing but what is read of it.

    Asks once whether the hub can be reached: its own client tries for minutes, file after file.
    """
    from huggingface_hub import constants, snapshot_download

    name, url = source.name, urlsplit(constants.ENDPOINT)
    reached = not (constants.HF_HUB_OFFLINE or source.local_files_only)
    if reached and not getproxies():
        try:
            port = url.port or (443 if url.scheme == "https" else 80)
            socket.create_connection((url.hostname or "", port), timeout=5).close()
        except OSError:
            reached = False
    fetch = partial(snapshot_download, name, revision=source.revision, local_files_only=not reached)
    parts, own = STABLE_DIFFUSION_XL.with_weights, [] if source.variant is None else [f".{source.variant}"]
    try:
        for word in own:
            folder = Path(fetch(allow_patterns=[f"{part}/*{word}*.safetensors" for part in parts]))
            parts = tuple(part for part in parts if not any((folder / part).glob("*.safetensors")))
        wanted = ["*.json", "*.txt", *(f"{part}/*.safetensors" for part in parts)]
        return Path(fetch(allow_patterns=wanted, ignore_patterns="*.*.safetensors"))
    except Exception as error:
        if source.local_files_only:
            raise ModelError(
                f"there is no folder {name!r}, and nothing of that name was fetched before; "
                "leave local_files_only out to fetch it"
            ) from error
        if not reached:
            raise ModelError(
                f"there is no folder {name!r}, and the hub at {constants.ENDPOINT} can't be reached to fetch it; "
                "give a folder in the diffusers layout, or try again with a connection"
            ) from error
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"model {name!r} can't be fetched ({reason}); give a folder instead") from error


def check_parts(folder: Path) -> Family:
    """The family of a folder. Raises `ModelError` unless all of its parts are there, and it is supported."""
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
    return family


def _check_folder(folder: Path, variant: str | None) -> dict[str, str]:
    """The parts that have the variant. Raises `ModelError` unless all is there, whole."""
    family = check_parts(folder)
    found = {part: _check_weights(folder / part, variant) for part in family.with_weights}
    if variant is not None and not any(found.values()):
        raise ModelError(
            f"{folder} has no weights of variant {variant!r}; leave variant out, and give torch_dtype for a precision"
        )
    return {part: variant for part, has_it in found.items() if has_it and variant is not None}


def _check_weights(folder: Path, variant: str | None) -> bool:
    """Whether a part has the variant. Raises unless safetensors files are there, as they are read, and all whole."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(
            f"{folder} has no .safetensors file and pickled weights are never read; "
            "save the model with safe_serialization=True"
        )
    own = [path for path in weights if variant is not None and f".{variant}" in path.name]
    named = own or [path for path in weights if path.name.count(".") == 1]
    if not named:
        other = weights[0].name.split(".")[1].split("-")[0]
        raise ModelError(
            f"{folder} has {weights[0].name} alone, a variant; give variant={other!r} (--weights-variant {other})"
        )
    for path in named:
        read_shapes(path)
    return bool(own)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of what a safetensors file holds, by name; no weight is read. Raises `ModelError` unless it is whole."""
    try:
        # Compares the header with the length of the file, too.
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is corrupt or cut short ({error}); copy it again") from error


def stored_dtype(source: Source) -> torch.dtype:
    """float16 where the weights of a UNet lie in it, else float32. Raises `ModelError` as loading does."""
    if source.is_file:
        paths = [expanded(source.name)]
    else:
        folder = locate(source)
        word = folder.variants.get("unet")
        paths = [
            path for path in (folder.path / "unet").glob("*.safetensors") if word is None or word in path.name
        ]
    names = {name: path for path in paths for name in read_shapes(path)}
    first = next((name for name in names if "input_blocks.0.0" in name or "conv_in" in name), None)
    if first is None:
        return torch.float32
    with safe_open(names[first], "pt") as file:
        half = file.get_slice(first).get_dtype() == "F16"
    return torch.float16 if half else torch.float32


def read_part(folder: Path, part: str, kind: Any, **options: Any) -> Any:
    """One component, by its class's `from_pretrained`; raises `ModelError` where it can't be built from the files."""
    modular = issubclass(kind, nn.Module)
    if modular:
        options |= {"use_safetensors": True, "output_loading_info": True}
    try:
        with torch.device("cpu"), quiet_libraries():
            read = kind.from_pretrained(folder, subfolder=part, **options)
            # A tokenizer whose unknown token is none itself would look for it without end, at the first prompt.
            getattr(read, "all_special_ids", None)
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
    check_numbers(module, part, folder)
    return module


def check_numbers(module: nn.Module, part: str, folder: Path) -> None:
    for name, weight in module.named_parameters():
        # A sum costs one pass and no memory, and no infinity or NaN is lost in it.
        if not bool(weight.detach().sum(dtype=torch.float32).isfinite()):
            raise ModelError(
                f"the {part} of model {str(folder)!r} has numbers in {name} that are none (NaN or infinite); "
                "copy the model again"
            )


@contextmanager
def quiet_libraries() -> Iterator[None]:
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
