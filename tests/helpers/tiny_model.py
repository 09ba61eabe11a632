"""Checkpoints in the shape of Stable Diffusion 1.x and 2.x, random and so small that an edit takes a moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.shapes import NOISE
from tests.helpers.tokenizers import small_clip_tokenizer

TOKENS, TEXT = 20, 32
SIDE = 16
"""Pixels; the latents have half of that."""

UNET: dict[str, Any] = {
    "sample_size": SIDE // 2,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": TEXT,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}
STABLE_DIFFUSION_2: dict[str, Any] = {"attention_head_dim": (2, 8), "use_linear_projection": True}
SCHEDULER: dict[str, Any] = {
    **NOISE,
    # Of few steps the last ones that were trained for are left out by no other spacing.
    "timestep_spacing": "trailing",
}


def save_tiny_model(
    folder: Path, *, unet: dict[str, Any] | None = None, facts: dict[str, Any] | None = None, **scheduler: Any
) -> Path:
    """Write a checkpoint and return its folder. `facts` become adapedit.json."""
    torch.manual_seed(0)
    tokenizer = small_clip_tokenizer(max_length=TOKENS)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT,
            intermediate_size=2 * TEXT,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        sample_size=SIDE,
        scaling_factor=0.3,
    )
    model = UNet2DConditionModel(**{**UNET, **(unet or {})})
    with torch.no_grad():
        # Random projections attend to everything alike; these look at something.
        for name, parameter in model.named_parameters():
            if name.endswith(("attn1.to_q.weight", "attn2.to_q.weight", "attn2.to_k.weight")):
                parameter.mul_(4)
    parts = {"tokenizer": tokenizer, "text_encoder": text_encoder, "vae": vae, "unet": model}
    parts["scheduler"] = DDIMScheduler(**{**SCHEDULER, **scheduler})
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline"}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        library = "transformers" if name in ("tokenizer", "text_encoder") else "diffusers"
        index[name] = [library, type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    if facts is not None:
        (folder / "adapedit.json").write_text(json.dumps(facts))
    return folder
