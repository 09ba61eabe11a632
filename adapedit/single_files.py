"""Single files of weights, as they are traded: told apart by what they hold, and converted by diffusers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from adapedit.architectures import ARCHITECTURES, write_architecture
from adapedit.checkpoints import (
    Source,
    check_numbers,
    check_parts,
    expanded,
    quiet_libraries,
    read_part,
    read_shapes,
)
from adapedit.configs import ModelError, read_configs
from adapedit.families import STABLE_DIFFUSION, STABLE_DIFFUSION_XL, SUPPORTED, Family

UNET_WEIGHT = "model.diffusion_model.input_blocks.0.0.weight"
"""That every UNet of these families has in a single file."""


def check_file(path: Path) -> str:
    """The kind of `ARCHITECTURES` that a file is of; no weight is read. Raises `ModelError` for anything else."""
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    if not path.is_file():
        raise ModelError(f"there is no file {str(path)!r}; give a .safetensors file, or a folder")
    if path.suffix != ".safetensors":
        raise ModelError(
            f"{path} is a pickle, which can run any program when it is read, and is not read here; if you trust it, "
            f"StableDiffusionPipeline.from_single_file({path.name!r}).save_pretrained('folder') converts it"
        )
    shapes = read_shapes(path)
    try:
        found = infer_diffusers_model_type({name: SimpleNamespace(shape=s) for name, s in shapes.items()})
    except (KeyError, IndexError) as error:  # of what is much like something that it knows
        raise ModelError(f"{path} is of no kind that is known; give one of {SUPPORTED}") from error
    if found in ARCHITECTURES and UNET_WEIGHT not in shapes:
        raise ModelError(
            f"{path} has no UNet in the layout of single files; of a LoRA or a part, load it into a diffusers pipeline "
            "and give that to from_pipe"
        )
    if found not in ARCHITECTURES:
        raise ModelError(f"{path} is of kind {found!r}, which is not supported; give one of {SUPPORTED}")
    return str(found)


def convert(source: Source, dtype: torch.dtype) -> Any:
    """A diffusers pipeline of the file's weights on the CPU, by diffusers' own conversion, with DDIM.

    source.config: a folder in the diffusers layout, whose configurations and tokenizers are taken and no weights; None:
    those of the published architecture, and source.tokenizer has to be given. Nothing is fetched. Raises `ModelError`
    before weights are read for what can't be right.
    """
    path = expanded(source.name)
    kind = check_file(path)
    with config_of(source, kind) as folder:
        configs = read_configs(folder)
        family, wanted = configs.index.family, family_of_kind(kind)
        if family is not wanted:
            raise ModelError(
                f"{path} is of {wanted.name}, its config {folder} of {family.name}; give one of its own"
            )
        wide = family.wide_vae and configs.vae.force_upcast and dtype == torch.float16
        pipe = _converted(path, folder, family, dtype, wide=wide)
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            check_numbers(part, name, path)
    return pipe


def family_of_kind(kind: str) -> Family:
    return STABLE_DIFFUSION_XL if kind == "xl_base" else STABLE_DIFFUSION


@contextmanager
def config_of(source: Source, kind: str) -> Iterator[Path]:
    """The folder of a file's configurations and tokenizers, which may be there for the length of the block alone."""
    if source.config is not None:
        folder = expanded(source.config)
        if not folder.is_dir():
            raise ModelError(f"config is {str(folder)!r}, wanted a folder in the diffusers layout")
        check_parts(folder)
        yield folder
        return
    if source.tokenizer is None:
        raise ModelError(
            f"{source.name} holds no tokenizer; give config, a folder of its family in the diffusers layout, or "
            "tokenizer, the folder of one (--config, --tokenizer)"
        )
    with tempfile.TemporaryDirectory(prefix="adapedit-") as made:
        write_architecture(kind, Path(made))
        _write_tokenizers(source.tokenizer, Path(made), family_of_kind(kind))
        yield Path(made)


def _write_tokenizers(given: Any, folder: Path, family: Family) -> None:
    """Of one tokenizer all that a family has: they cut alike, and the second of SDXL pads with "!"."""
    from transformers import CLIPTokenizer

    tokenizer = given
    if isinstance(given, (str, Path)):
        place = expanded(given)
        if not place.is_dir():
            raise ModelError(f"tokenizer is {str(place)!r}, wanted the folder of one, or a CLIPTokenizer")
        tokenizer = read_part(place.parent, place.name, CLIPTokenizer)
    for part in family.tokenizers:
        tokenizer.save_pretrained(folder / part)
    for part in family.tokenizers[1:]:
        CLIPTokenizer.from_pretrained(folder / part, pad_token="!").save_pretrained(folder / part)


def _converted(path: Path, folder: Path, family: Family, dtype: torch.dtype, *, wide: bool) -> Any:
    import diffusers
    from transformers import CLIPTokenizer

    own: dict[str, Any] = {part: read_part(folder, part, CLIPTokenizer) for part in family.tokenizers}
    own["scheduler"] = read_part(
        folder, "scheduler", diffusers.DDIMScheduler, clip_sample=False, thresholding=False
    )
    where = {"config": str(folder), "local_files_only": True}
    kind = getattr(diffusers, f"{family.pipeline}Pipeline")
    try:
        with torch.device("cpu"), quiet_libraries():
            if wide:
                own["vae"] = diffusers.AutoencoderKL.from_single_file(
                    str(path), subfolder="vae", torch_dtype=torch.float32, **where
                )
            return kind.from_single_file(str(path), torch_dtype=dtype, **where, **own)
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(
            f"{path} can't be converted with the configurations of {folder}: {reason}"
        ) from error
