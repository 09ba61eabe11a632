"""CLIP checkpoints of random weights: so small that a picture takes a moment, or in the shape of a published one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from tests.helpers.tokenizers import small_clip_tokenizer

TINY: dict[str, Any] = {
    "text": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "vision": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "projection": 24,
    "image": 32,
    "patch": 8,
}
VIT_L_14: dict[str, Any] = {
    "text": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "vision": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
    "projection": 768,
    "image": 224,
    "patch": 14,
}


def save_clip(folder: Path, shape: dict[str, Any] | None = None, *, tokens: int = 77) -> Path:
    """Write a checkpoint as `CLIPModel` and `CLIPProcessor` do, and return its folder."""
    shape = shape or TINY
    torch.manual_seed(1)
    tokenizer = small_clip_tokenizer(max_length=tokens)
    size = 49408 if shape is not TINY else len(tokenizer)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**shape["text"], "vocab_size": size, "max_position_embeddings": tokens, **ends}
    vision = {**shape["vision"], "image_size": shape["image"], "patch_size": shape["patch"]}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=shape["projection"])
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    side = shape["image"]
    CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    ).save_pretrained(folder)
    return folder
