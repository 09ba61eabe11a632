"""Families of checkpoints: what differs between them besides the sizes that their configurations name."""

from __future__ import annotations

from dataclasses import dataclass

SUPPORTED = "Stable Diffusion 1.x, 2.x or XL"
OTHERS = {
    "StableDiffusion3": "Stable Diffusion 3",
    "Flux": "FLUX",
    "PixArt": "PixArt",
    "Kandinsky": "Kandinsky",
}
"""By what the names of their pipelines begin with; they are not supported."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """pipeline: of diffusers, whose name begins those of all of its kind. guidance_scale: as diffusers has it.

    tokenizers, text_encoders: folders, in the order in which they are joined.
    wide_vae: whether a VAE that asks for it (`force_upcast`) stays in float32 where the model is in float16.
    """

    name: str
    pipeline: str
    tokenizers: tuple[str, ...]
    text_encoders: tuple[str, ...]
    guidance_scale: float
    wide_vae: bool

    @property
    def components(self) -> tuple[str, ...]:
        """Folders of a checkpoint."""
        return (*self.tokenizers, *self.with_weights, "scheduler")

    @property
    def with_weights(self) -> tuple[str, ...]:
        return (*self.text_encoders, "unet", "vae")


STABLE_DIFFUSION = Family(
    name="Stable Diffusion",
    pipeline="StableDiffusion",
    tokenizers=("tokenizer",),
    text_encoders=("text_encoder",),
    guidance_scale=7.5,
    wide_vae=False,
)
STABLE_DIFFUSION_XL = Family(
    name="Stable Diffusion XL",
    pipeline="StableDiffusionXL",
    tokenizers=("tokenizer", "tokenizer_2"),
    text_encoders=("text_encoder", "text_encoder_2"),
    guidance_scale=5.0,
    wide_vae=True,
)


def family_of(pipeline: str) -> Family:
    """The family of a pipeline's class, by its name in `model_index.json`."""
    larger = pipeline.startswith(STABLE_DIFFUSION_XL.pipeline)
    return STABLE_DIFFUSION_XL if larger else STABLE_DIFFUSION
