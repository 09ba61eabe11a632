"""What the paper says of itself, to hold measured figures against. Nothing here is measured by this project."""

from __future__ import annotations

from typing import Any

TABLE_1 = {
    "prompt-to-prompt": {"lpips": 0.33, "clip_score": 26.05, "clip_directional": 0.11},
    "sdedit": {"lpips": 0.55, "clip_score": 26.52, "clip_directional": 0.11},
    "instruct-pix2pix": {"lpips": 0.27, "clip_score": 24.59, "clip_directional": 0.04},
    "masactrl": {"lpips": 0.41, "clip_score": 27.00, "clip_directional": 0.13},
    "adapedit": {"lpips": 0.29, "clip_score": 27.08, "clip_directional": 0.13},
}
"""Table 1 of AdapEdit (AAAI 2024)."""

SAYS = (
    "The paper's own figures (its Table 1): Stable Diffusion v1.4, 50 steps, 700 pairs chosen at random from those "
    "that people wrote for InstructPix2Pix. Not measured here. It names neither its CLIP and LPIPS networks, nor its "
    "pairs, nor its seeds."
)

TEXT_WIDTH, LATENT_SIDE = 768, 64
"""Of Stable Diffusion 1.x at 512 x 512 pixels."""


def reference(model: Any) -> dict[str, Any] | None:
    """The paper's table with what it is, where `model` has the shape of the paper's; None for any other."""
    width = getattr(getattr(model.text_encoder, "config", None), "hidden_size", None)
    if width != TEXT_WIDTH or model.latent_size != LATENT_SIDE:
        return None
    return {"says": SAYS, "means": TABLE_1}
