"""Published architectures, for single files of weights, which bring none: what their configurations say, by part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adapedit.configs import INDEX_FILE, SCHEDULER_FILE
from adapedit.families import STABLE_DIFFUSION, STABLE_DIFFUSION_XL

NOISE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
TOKENS, VOCABULARY = 77, 49408


def _text(width: int, layers: int, heads: int, projection: int, hidden_act: str = "gelu") -> dict[str, Any]:
    return {
        "model_type": "clip_text_model",
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "projection_dim": projection,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": TOKENS,
        "hidden_act": hidden_act,
        # As published: of these ids the end token is the largest, and is found by that.
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }


def _unet(side: int, width: int, **more: Any) -> dict[str, Any]:
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": side,
        "cross_attention_dim": width,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "attention_head_dim": 8,
        **more,
    }


def _vae(side: int, scaling_factor: float = 0.18215) -> dict[str, Any]:
    return {
        "_class_name": "AutoencoderKL",
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": 4,
        "sample_size": side,
        "scaling_factor": scaling_factor,
    }


_SMALL_CLIP = _text(768, layers=12, heads=12, projection=768, hidden_act="quick_gelu")
ARCHITECTURES: dict[str, dict[str, dict[str, Any]]] = {
    "v1": {
        "text_encoder": _SMALL_CLIP,
        "unet": _unet(64, 768),
        "vae": _vae(512),
        "scheduler": NOISE,
    },
    "v2": {  # of 768 pixels, which predicts the velocity
        "text_encoder": _text(1024, layers=23, heads=16, projection=512),
        "unet": _unet(96, 1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True),
        "vae": _vae(768),
        "scheduler": {**NOISE, "prediction_type": "v_prediction"},
    },
    "xl_base": {
        "text_encoder": _SMALL_CLIP,
        "text_encoder_2": _text(1280, layers=32, heads=20, projection=1280),
        "unet": _unet(
            128,
            2048,
            down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            block_out_channels=[320, 640, 1280],
            transformer_layers_per_block=[1, 2, 10],
            attention_head_dim=[5, 10, 20],
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
        "vae": _vae(1024, 0.13025),
        "scheduler": NOISE,
    },
}
"""By the kinds that diffusers tells single files apart by."""


def write_architecture(kind: str, folder: Path) -> None:
    """Write the configurations of a kind, in the diffusers layout; a tokenizer is not among them."""
    parts = ARCHITECTURES[kind]
    family = STABLE_DIFFUSION_XL if "text_encoder_2" in parts else STABLE_DIFFUSION
    classes = {
        **{part: ["transformers", "CLIPTextModel"] for part in family.text_encoders},
        **{part: ["transformers", "CLIPTokenizer"] for part in family.tokenizers},
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    if family is STABLE_DIFFUSION_XL:
        classes["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
    index = {"_class_name": f"{family.pipeline}Pipeline", **classes}
    files = {f"{part}/config.json": parts[part] for part in parts if part != "scheduler"}
    files |= {INDEX_FILE: index, SCHEDULER_FILE: {"_class_name": "DDIMScheduler", **parts["scheduler"]}}
    for name, fields in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(fields, indent=1, allow_nan=False) + "\n")
