"""A text-to-image model as the pipeline wants it: loaded, checked, and with what is known of it beside it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from adapedit_engine.runners import Runner
from adapedit_engine.runners.pytorch import PyTorchRunner
from adapedit_kernels.errors import AdapEditError

BUILTIN = Path(__file__).parent / "models" / "builtin"
FACTS_FILE = "adapedit.json"
COMPONENTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")


class ModelError(AdapEditError):
    """A model that is not there, is broken, or is of a kind that can't be edited."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What the method has to know of a model beyond its configuration; from `adapedit.json` where there is one.

    map_divisor:    latent side over map side; None: half of the latent side where that exists (SD: 32 of 64).
    self_divisor:   self-attention is taken from the source where the side is at most 1/self_divisor of the latents'.
    guidance_scale: what a request gets that names none.
    known_words:    all words of a model with a closed vocabulary, else None.
    defaults:       per method, knobs that differ from the paper's, found by measurement.
    """

    map_divisor: int | None = None
    self_divisor: int = 4
    guidance_scale: float = 7.5
    known_words: tuple[str, ...] | None = None
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> ModelFacts:
        """The facts beside a checkpoint, or the paper's where the file is missing."""
        path = folder / FACTS_FILE
        if not path.exists():
            return cls()
        try:
            values = json.loads(path.read_text())
            words = values.pop("known_words", None)
            return cls(**values, known_words=None if words is None else tuple(words))
        except (ValueError, TypeError) as error:
            raise ModelError(f"{path} can't be read ({error}); correct it or remove it") from error


@dataclass(frozen=True, kw_only=True)
class EditModel:
    """Tokenizer, text encoder, UNet behind a runner, VAE and scheduler of one checkpoint."""

    name: str
    tokenizer: Any
    text_encoder: Any
    runner: Runner
    vae: Any
    scheduler: Any
    facts: ModelFacts
    latent_size: int

    @property
    def device(self) -> torch.device:
        return self.runner.device

    @property
    def vae_factor(self) -> int:
        """Pixels to one latent cell, per side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.inference_mode()
    def encode_ids(self, input_ids: Tensor) -> Tensor:
        """Token ids [B, N] to hidden states [B, N, D] in the text encoder's dtype."""
        return self.text_encoder(input_ids.to(self.text_encoder.device)).last_hidden_state

    def unconditional_ids(self) -> Tensor:
        """Ids [N] of the empty prompt, for classifier-free guidance."""
        ids = self.tokenizer(
            "", padding="max_length", max_length=self.max_tokens, return_tensors="pt"
        ).input_ids
        return ids[0]

    @property
    def max_tokens(self) -> int:
        """N: the text encoder's own limit (77 for Stable Diffusion)."""
        return int(self.text_encoder.config.max_position_embeddings)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] to pixels [B, 3, H, W] float32 in 0..1, on the CPU.

        One picture at a time: its pixels do not depend on its neighbours, nor on how many there are.
        """
        scaled = (latents / self.vae.config.scaling_factor).to(self.vae.device, self.vae.dtype)
        pictures = [self.vae.decode(one[None]).sample.float().cpu() for one in scaled]
        return (torch.cat(pictures) / 2 + 0.5).clamp(0, 1)


def load_model(
    source: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    scheduler: Any = None,
) -> EditModel:
    """Load the built-in model (None or "builtin"), a diffusers folder, or a hub name that the user gives.

    Weights are read from safetensors files only, and their headers are checked before anything is built. Raises
    `ModelError` with the mend in one line.
    """
    name = "builtin" if source is None else str(source)
    place: str | Path = BUILTIN if name == "builtin" else Path(name).expanduser()
    if Path(place).is_dir():
        place = Path(place)
        _check_folder(place)
        facts = ModelFacts.read(place)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists():
        place, facts = name, ModelFacts()
    else:
        raise ModelError(
            f"there is no model at {name!r}; "
            "give 'builtin', a folder in the diffusers layout, or a hub name (owner/name)"
        )
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()

    try:
        tokenizer = CLIPTokenizer.from_pretrained(place, subfolder="tokenizer")
        text_encoder = CLIPTextModel.from_pretrained(
            place, subfolder="text_encoder", use_safetensors=True, dtype=dtype
        )
        unet = UNet2DConditionModel.from_pretrained(
            place, subfolder="unet", use_safetensors=True, torch_dtype=dtype
        )
        vae = AutoencoderKL.from_pretrained(place, subfolder="vae", use_safetensors=True, torch_dtype=dtype)
        if scheduler is None:
            config = DDIMScheduler.load_config(place, subfolder="scheduler")
            scheduler = DDIMScheduler.from_config(config, clip_sample=False, thresholding=False)
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"model {name!r} can't be loaded: {reason}") from error
    for module in (text_encoder, unet, vae):
        module.requires_grad_(False)
        module.to(device).eval()
    return EditModel(
        name=name,
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        runner=PyTorchRunner(unet, map_divisor=facts.map_divisor),
        vae=vae,
        scheduler=scheduler,
        facts=facts,
        latent_size=int(unet.config.sample_size),
    )


def _check_folder(folder: Path) -> None:
    """Refuse what is no checkpoint, and weights that are broken, before anything is built."""
    missing = [part for part in COMPONENTS if not (folder / part).is_dir()]
    if not (folder / "model_index.json").is_file() or missing:
        what = f"no {', '.join(missing)}" if missing else "no model_index.json"
        raise ModelError(
            f"{folder} is no Stable Diffusion checkpoint in the diffusers layout ({what}); "
            "save one with StableDiffusionPipeline.save_pretrained"
        )
    for part in ("text_encoder", "unet", "vae"):
        weights = sorted((folder / part).glob("*.safetensors"))
        if not weights:
            raise ModelError(
                f"{folder / part} has no .safetensors file and pickled weights are never read; "
                "save the model with safe_serialization=True"
            )
        for path in weights:
            try:
                with safe_open(path, "pt") as file:
                    file.keys()
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{path} is corrupt or cut short ({error}); copy it again") from error
