"""Checkpoints in the shape of Stable Diffusion 1.x, 2.x and XL, random and so small that an edit takes a moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from adapedit.architectures import NOISE
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
XL_SIDE = 32
XL: dict[str, Any] = {
    "sample_size": XL_SIDE // 2,
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (2, 4, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 24,
    "cross_attention_dim": TEXT + 40,
}
"""Of the UNet; the text encoders are 32 and 40 wide, and what is pooled 24."""
SCHEDULER: dict[str, Any] = {
    **NOISE,
    # Of few steps the last ones that were trained for are left out by no other spacing.
    "timestep_spacing": "trailing",
}
XL_SCHEDULER: dict[str, Any] = {
    **{name: NOISE[name] for name in ("beta_start", "beta_end", "beta_schedule", "steps_offset")},
    "timestep_spacing": "trailing",
}


def save_tiny_model(
    folder: Path, *, unet: dict[str, Any] | None = None, facts: dict[str, Any] | None = None, **scheduler: Any
) -> Path:
    """Write a checkpoint and return its folder. `facts` become adapedit.json."""
    torch.manual_seed(0)
    tokenizer = small_clip_tokenizer(max_length=TOKENS)
    parts = {"tokenizer": tokenizer, "text_encoder": CLIPTextModel(_text_config(tokenizer))}
    parts["vae"] = _vae(SIDE)
    parts["unet"] = _unet(**(unet or {}))
    parts["scheduler"] = DDIMScheduler(**{**SCHEDULER, **scheduler})
    return _save(folder, "StableDiffusionPipeline", parts, facts)


def save_tiny_xl(
    folder: Path,
    *,
    unet: dict[str, Any] | None = None,
    facts: dict[str, Any] | None = None,
    layers: int = 2,
    **scheduler: Any,
) -> Path:
    """The same in the layout of SDXL: two text encoders, of which the second's tokenizer pads with "!".

    layers: of the second text encoder.
    """
    torch.manual_seed(0)
    one, two = small_clip_tokenizer(max_length=TOKENS), small_clip_tokenizer(TOKENS, "!")
    wider = _text_config(
        two,
        hidden_size=40,
        num_attention_heads=2,
        num_hidden_layers=layers,
        hidden_act="gelu",
        projection_dim=24,
    )
    parts = {"tokenizer": one, "tokenizer_2": two, "text_encoder": CLIPTextModel(_text_config(one))}
    parts["text_encoder_2"] = CLIPTextModelWithProjection(wider)
    parts["vae"] = _vae(XL_SIDE)
    parts["unet"] = _unet(**{**XL, **(unet or {})})
    parts["scheduler"] = EulerDiscreteScheduler(**{**XL_SCHEDULER, **scheduler})
    return _save(folder, "StableDiffusionXLPipeline", parts, facts, force_zeros_for_empty_prompt=True)


def _text_config(tokenizer: Any, **changes: Any) -> CLIPTextConfig:
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT,
        "intermediate_size": 2 * TEXT,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPTextConfig(**{**shape, **changes})


def _vae(side: int) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        sample_size=side,
        scaling_factor=0.3,
    )


def _unet(**changes: Any) -> UNet2DConditionModel:
    model = UNet2DConditionModel(**{**UNET, **changes})
    with torch.no_grad():
        # Random projections attend to everything alike; these look at something.
        for name, parameter in model.named_parameters():
            if name.endswith(("attn1.to_q.weight", "attn2.to_q.weight", "attn2.to_k.weight")):
                parameter.mul_(4)
    return model


def _save(
    folder: Path, pipeline: str, parts: dict[str, Any], facts: dict[str, Any] | None, **more: Any
) -> Path:
    index: dict[str, Any] = {"_class_name": pipeline, **more}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        library = "transformers" if name.startswith(("tokenizer", "text_encoder")) else "diffusers"
        index[name] = [library, type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    if facts is not None:
        (folder / "adapedit.json").write_text(json.dumps(facts))
    return folder
