"""A text-to-image model as the pipeline wants it, from a checkpoint's modules or from a bundle's graphs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adapedit.configs import ModelError, ModelFacts
from adapedit.families import STABLE_DIFFUSION, STABLE_DIFFUSION_XL
from adapedit.prompts.tokens import framed_ids
from adapedit_engine.manifest import TOKENIZERS
from adapedit_engine.models.text import TextEncoders
from adapedit_engine.runners.base import Runner, RunnerError
from adapedit_engine.runners.graphs import BundleRunner
from adapedit_engine.runners.pytorch import PyTorchRunner
from adapedit_engine.schedule import Schedule, scheduler_of
from adapedit_kernels.errors import AdapEditError

if TYPE_CHECKING:
    from adapedit_export.export import Checkpoint


class NumericError(AdapEditError):
    """Numbers that are none (NaN or infinite), as they come of half precision that overflows."""

    @classmethod
    def of(cls, where: str) -> NumericError:
        """where: what gave them first."""
        return cls(
            f"{where} gave numbers that are none (NaN or infinite); load the model with torch_dtype torch.bfloat16 or "
            "torch.float32 (--dtype), and keep guidance_scale moderate"
        )


@dataclass(frozen=True, kw_only=True)
class EditModel:
    """Tokenizers, text encoders, UNet behind a runner, VAE and scheduler of one checkpoint.

    tokenizers: one of each text encoder; prompts are aligned by the first, and the others cut words alike.
    latent_size: side of the latents that it was trained for. latent_scale: latents over what the VAE's encoder gives.
    vae_factor: pixels to one latent cell, per side. wide_vae: the VAE overflows in float16, and is kept in float32.
    safety_checker_off: whether the checkpoint has one, which is never run here.
    max_tokens: N, the text encoder's own limit (77 for SD).
    """

    name: str
    tokenizers: tuple[Any, ...]
    text: TextEncoders | None
    runner: Runner
    vae: Any
    scheduler: Any
    facts: ModelFacts
    latent_size: int
    latent_scale: float
    vae_factor: int
    max_tokens: int
    wide_vae: bool = False
    safety_checker_off: bool = False

    @property
    def device(self) -> torch.device:
        return self.runner.device

    @property
    def tokenizer(self) -> Any:
        """The first one."""
        return self.tokenizers[0]

    @property
    def components(self) -> dict[str, Any]:
        """Its parts by diffusers' names: `StableDiffusionPipeline(**components)` is the same model.

        Raises `ModelError` for a bundle, which has none.
        """
        if self.text is None or not isinstance(self.runner, PyTorchRunner):
            raise ModelError(f"{self.name} is a bundle, which has graphs and no modules; load its checkpoint")
        several = len(self.tokenizers) > 1
        names = (STABLE_DIFFUSION_XL if several else STABLE_DIFFUSION).text_encoders
        return {
            **dict(zip(TOKENIZERS, self.tokenizers, strict=False)),
            **dict(zip(names, self.text.encoders, strict=True)),
            "unet": self.runner.controlled.unet,
            "vae": self.vae,
            "scheduler": self.scheduler,
            **dict.fromkeys(
                ("feature_extractor", "image_encoder", *(() if several else ("safety_checker",)))
            ),
        }

    @property
    def side(self) -> int:
        """Side of a picture that the model was trained for, in pixels."""
        return self.latent_size * self.vae_factor

    @property
    def made_with(self) -> dict[str, str]:
        """What pictures depend on besides the model and the request, for whoever wants to repeat them bit for bit."""
        return {
            "runner": self.runner.name,
            "device": str(self.device),
            "dtype": str(self.runner.dtype).removeprefix("torch."),
            "scheduler": type(self.scheduler).__name__,
            **({"safety_checker": "off"} if self.safety_checker_off else {}),
            **_versions(),
        }

    def schedule(self, num_inference_steps: int, solver: str = "model", **step_options: Any) -> Schedule:
        """The scheduler's, or a solver's on its noise levels, see `Schedule.from_scheduler`."""
        chosen = scheduler_of(solver, self.scheduler)
        return Schedule.from_scheduler(chosen, num_inference_steps, **step_options)

    def with_scheduler(self, scheduler: Any) -> EditModel:
        """The same with another diffusers scheduler. Raises `ScheduleError` for one that can't be used."""
        Schedule.from_scheduler(scheduler, 10)
        return dataclasses.replace(self, scheduler=scheduler)

    @property
    def any_size(self) -> bool:
        """Whether latents of any size can be decoded."""
        return True

    def check_size(self, height: int, width: int) -> None:
        """Raise where pictures of this size, in pixels, can't be made; a checkpoint takes all that its UNet halves."""

    def check_chunks(self, multiples: int) -> None:
        """Raise where prompts of so many times `max_tokens` can't be taken; a checkpoint takes them."""

    @torch.inference_mode()
    def encode_ids(self, input_ids: Tensor) -> dict[str, Tensor]:
        """Token ids [E, B, N] of every tokenizer to what `TextEncoders` gives, by name."""
        assert self.text is not None
        return dict(zip(self.text.outputs, self.text(*input_ids.to(self.text.device)), strict=True))

    def unconditional_ids(self) -> Tensor:
        """Ids [E, N] of the empty prompt, for classifier-free guidance."""
        ids = [framed_ids("", tokenizer, self.max_tokens) for tokenizer in self.tokenizers]
        return torch.tensor(ids, dtype=torch.int64, device="cpu")

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in 0..1 to latents [B, C, h, w] float32 on the CPU: the posterior's mean, nothing drawn.

        One picture at a time, as in `decode`.
        """
        given = (pixels * 2 - 1).to(self.vae.device, self.vae.dtype)
        means = [self.vae.encode(one[None]).latent_dist.mean.float().cpu() for one in given]
        return torch.cat(means) * self.latent_scale

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] to pixels [B, 3, H, W] float32 in 0..1, on the CPU.

        One picture at a time: its pixels do not depend on its neighbours, nor on how many there are. Raises
        `NumericError` where they are none.
        """
        pixels = torch.cat([self._decode(one[None]) for one in latents])
        if not bool(pixels.isfinite().all()):
            raise NumericError.of("the VAE's decoder")
        return pixels.clamp(0, 1)

    @torch.inference_mode()
    def _decode(self, latents: Tensor) -> Tensor:
        scaled = (latents / self.latent_scale).to(self.vae.device, self.vae.dtype)
        return self.vae.decode(scaled).sample.float().cpu() / 2 + 0.5


@dataclass(frozen=True, kw_only=True)
class BundleModel(EditModel):
    """A model whose text encoders and VAE are graphs of a bundle, too."""

    runner: BundleRunner

    @property
    def any_size(self) -> bool:
        return False

    def encode_ids(self, input_ids: Tensor) -> dict[str, Tensor]:
        return self.runner.encode_ids(input_ids)

    def encode(self, pixels: Tensor) -> Tensor:
        return self.runner.encode(pixels).cpu()

    def _decode(self, latents: Tensor) -> Tensor:
        return self.runner.decode(latents)

    def check_size(self, height: int, width: int) -> None:
        """Raise for a size that the bundle was not made for."""
        manifest = self.runner.bundle.manifest
        made = (manifest.height * self.vae_factor, manifest.width * self.vae_factor)
        if (height, width) != made:
            raise ModelError(
                f"the edit is {width} x {height} pixels, bundle {self.name} was made for {made[1]} x {made[0]}; export "
                f"one with --height {height} --width {width}"
            )

    def check_chunks(self, multiples: int) -> None:
        """Raise for more than the bundle was made for."""
        if multiples > 1:
            raise ModelError(
                f"max_embeddings_multiples is {multiples}, and the graphs of bundle {self.name} take "
                f"{self.max_tokens} tokens; leave it out, or use the checkpoint with --runner pytorch"
            )


def checkpoint_of(model: EditModel) -> Checkpoint:
    """A loaded model as what the export takes."""
    from adapedit_export.export import Checkpoint

    if not isinstance(model.runner, PyTorchRunner) or model.text is None:
        raise RunnerError(f"{model.name!r} is a bundle; give the checkpoint that it was made from")
    return Checkpoint(
        name=model.name,
        unet=model.runner.controlled.unet,
        map_divisor=model.facts.map_divisor,
        text=model.text,
        vae=model.vae,
        tokenizers=model.tokenizers,
        scheduler=model.scheduler,
        facts=dataclasses.asdict(model.facts),
        latent_size=model.latent_size,
        guidance_scale=model.facts.guidance_scale,
        max_tokens=model.max_tokens,
        wide_vae=model.wide_vae,
    )


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "diffusers", "transformers")}
