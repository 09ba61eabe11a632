"""A text-to-image model as the pipeline wants it: loaded, checked, and with what is known of it beside it."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from adapedit.checkpoint import BUILTIN, ModelError, locate, read_part
from adapedit.methods.settings import make_settings, one_line
from adapedit.words import framed_ids, settled
from adapedit_engine.packing import PackedWeights, can_pack
from adapedit_engine.runners import Runner
from adapedit_engine.runners.pytorch import PyTorchRunner
from adapedit_engine.schedule import Schedule, follow_pipelines

__all__ = [
    "BUILTIN",
    "FACTS_FILE",
    "EditModel",
    "ModelError",
    "ModelFacts",
    "Vocabulary",
    "load_model",
    "load_vocabulary",
]

FACTS_FILE = "adapedit.json"


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

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    @classmethod
    def read(cls, folder: Path | None) -> ModelFacts:
        """The facts beside a checkpoint, or the paper's where there are none. Raises `ModelError` for a bad file."""
        path = None if folder is None else folder / FACTS_FILE
        if path is None or not path.exists():
            return cls()
        try:
            facts = TypeAdapter(cls).validate_python(json.loads(path.read_text(encoding="utf-8")))
            for method, knobs in facts.defaults.items():
                make_settings(method, **knobs)
        except (ValueError, OSError) as error:
            reason = one_line(error) if isinstance(error, ValidationError) else str(error)
            raise ModelError(f"{path} can't be used ({reason}); correct it or remove it") from error
        return facts


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What is needed to align prompts for a model. max_tokens: N, the text encoder's own limit."""

    name: str
    tokenizer: Any
    max_tokens: int
    facts: ModelFacts


@dataclass(frozen=True, kw_only=True)
class EditModel:
    """Tokenizer, text encoder, UNet behind a runner, VAE and scheduler of one checkpoint.

    editors: UNets of other checkpoints that edit this one's pictures, by name, as they are loaded.
    packed_vae: the VAE's weights as oneDNN wants them, on the CPU; the runner has those of the UNet.
    """

    name: str
    tokenizer: Any
    text_encoder: Any
    runner: Runner
    vae: Any
    scheduler: Any
    facts: ModelFacts
    latent_size: int
    editors: dict[str, Runner] = field(default_factory=dict, compare=False)
    packed_vae: PackedWeights | None = field(default=None, compare=False, repr=False)

    @property
    def device(self) -> torch.device:
        return self.runner.device

    @property
    def made_with(self) -> dict[str, str]:
        """What pictures depend on besides the model and the request, for whoever wants to repeat them bit for bit."""
        return {
            "runner": type(self.runner).__name__,
            "device": str(self.device),
            "dtype": str(self.runner.dtype).removeprefix("torch."),
            "scheduler": type(self.scheduler).__name__,
            **_versions(),
        }

    @property
    def vae_factor(self) -> int:
        """Pixels to one latent cell, per side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def latent_scale(self) -> float:
        """Latents over what the VAE's encoder gives."""
        return float(self.vae.config.scaling_factor)

    def schedule(self, num_inference_steps: int, **step_options: Any) -> Schedule:
        """The scheduler as a table, see `Schedule.from_scheduler`."""
        return Schedule.from_scheduler(self.scheduler, num_inference_steps, **step_options)

    @torch.inference_mode()
    def encode_ids(self, input_ids: Tensor) -> Tensor:
        """Token ids [B, N] to hidden states [B, N, D] in the text encoder's dtype."""
        return self.text_encoder(input_ids.to(self.text_encoder.device)).last_hidden_state

    def unconditional_ids(self) -> Tensor:
        """Ids [N] of the empty prompt, for classifier-free guidance."""
        return torch.tensor(framed_ids("", self.tokenizer, self.max_tokens))

    @property
    def max_tokens(self) -> int:
        """N: the text encoder's own limit (77 for Stable Diffusion)."""
        return int(self.text_encoder.config.max_position_embeddings)

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in 0..1 to latents [B, C, h, w] float32 on the CPU: the posterior's mean, nothing drawn.

        One picture at a time, as in `decode`.
        """
        given = (pixels * 2 - 1).to(self.vae.device, self.vae.dtype)
        with self.fast_vae():
            means = [self.vae.encode(one[None]).latent_dist.mean.float().cpu() for one in given]
        return torch.cat(means) * self.vae.config.scaling_factor

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] to pixels [B, 3, H, W] float32 in 0..1, on the CPU.

        One picture at a time: its pixels do not depend on its neighbours, nor on how many there are.
        """
        scaled = (latents / self.vae.config.scaling_factor).to(self.vae.device, self.vae.dtype)
        with self.fast_vae():
            pictures = [self.vae.decode(one[None]).sample.float().cpu() for one in scaled]
        return (torch.cat(pictures) / 2 + 0.5).clamp(0, 1)

    def fast_vae(self) -> AbstractContextManager[None]:
        """In the block the VAE's weights are packed, where they can be. For whoever decodes often: may be nested."""
        return nullcontext() if self.packed_vae is None else self.packed_vae.attached()


def load_model(
    source: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    scheduler: Any = None,
    static_steps: bool | None = None,
) -> EditModel:
    """Load the built-in model (None or "builtin"), a diffusers folder, or a hub name that the user gives.

    scheduler, static_steps: see `AdapEditPipeline.from_pretrained`.

    Weights are read from safetensors files only, and the files are checked before anything is built. Raises
    `ModelError` with the mend in one line, `ScheduleError` for a scheduler that is no table of steps.
    """
    if not isinstance(dtype, torch.dtype):
        raise ModelError(f"dtype is {dtype!r}, wanted one of PyTorch, for example torch.float16")
    if scheduler is not None:
        scheduler = follow_pipelines(scheduler)
    place = locate(source)
    facts = ModelFacts.read(place.folder)
    device = _usable(device)
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = settled(read_part(place, "tokenizer", CLIPTokenizer))
    text_encoder = read_part(place, "text_encoder", CLIPTextModel, dtype=dtype)
    unet = read_part(place, "unet", UNet2DConditionModel, torch_dtype=dtype)
    vae = read_part(place, "vae", AutoencoderKL, torch_dtype=dtype)
    if scheduler is None:
        # Whatever scheduler the checkpoint names, DDIM takes its noise schedule; clipping would not be linear.
        scheduler = read_part(place, "scheduler", DDIMScheduler, clip_sample=False, thresholding=False)
        scheduler = follow_pipelines(scheduler)
    for module in (text_encoder, unet, vae):
        module.requires_grad_(False)
        # Convolutions want channels last, and would turn what comes to them, or their weights, at every call.
        module.to(device, memory_format=torch.channels_last).eval()
    return EditModel(
        name=place.name,
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        runner=PyTorchRunner(unet, map_divisor=facts.map_divisor, static_steps=static_steps),
        vae=vae,
        scheduler=scheduler,
        facts=facts,
        latent_size=int(unet.config.sample_size),
        packed_vae=PackedWeights(vae) if can_pack(vae) else None,
    )


def load_vocabulary(source: str | Path | None = None) -> Vocabulary:
    """The tokenizer alone, which is enough to align prompts. Raises as `load_model` does."""
    place = locate(source)
    from transformers import CLIPTextConfig, CLIPTokenizer

    return Vocabulary(
        name=place.name,
        tokenizer=settled(read_part(place, "tokenizer", CLIPTokenizer)),
        max_tokens=int(read_part(place, "text_encoder", CLIPTextConfig).max_position_embeddings),
        facts=ModelFacts.read(place.folder),
    )


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "diffusers", "transformers")}


def _usable(device: str | torch.device) -> torch.device:
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ModelError(f"device {str(device)!r} can't be used here ({reason}); use 'cpu'") from error
    return device
