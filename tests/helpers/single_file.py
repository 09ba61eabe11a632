"""Checkpoints as single files of weights, under the names of the codes that they were trained with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def save_single_file(components: dict[str, Any], path: Path) -> Path:
    """Write a pipeline's weights as one file, and return its path."""
    larger = "text_encoder_2" in components
    first = "conditioner.embedders.0.transformer." if larger else "cond_stage_model.transformer."
    tensors = _unet(components["unet"]) | _vae(components["vae"])
    for name, value in components["text_encoder"].state_dict().items():
        tensors[f"{first}text_model.{name.removeprefix('text_model.')}"] = value
    if larger:
        tensors |= _open_clip(components["text_encoder_2"])
    save_file({name: value.clone().contiguous() for name, value in tensors.items()}, path)
    return path


def _renamed(name: str, names: dict[str, str]) -> str:
    for own, other in names.items():
        if name == own or name.startswith(f"{own}."):
            return other + name[len(own) :]
    return name


def _unet(unet: Any) -> dict[str, Tensor]:
    layers, found = unet.config.layers_per_block, {}
    for name, value in unet.state_dict().items():
        step = re.match(
            r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name
        )
        if step is None:
            other = _renamed(name, UNET)
            if ".resnets." in name:
                head, _, rest = other.partition(".")
                number, _, rest = rest.partition(".")
                other = f"{head}.{number}.{_renamed(rest, RESNET)}"
        else:
            way, block, kind, number, rest = step.groups()
            at, blocks = int(block) * (layers + 1), getattr(unet, f"{way}_blocks")
            if kind == "downsamplers":
                other = f"input_blocks.{at + layers + 1}.0.op.{rest.removeprefix('conv.')}"
            elif kind == "upsamplers":
                place = 2 if getattr(blocks[int(block)], "attentions", None) else 1
                other = f"output_blocks.{at + layers}.{place}.{rest}"
            else:
                rest = _renamed(rest, RESNET) if kind == "resnets" else rest
                row = (
                    f"input_blocks.{at + int(number) + 1}"
                    if way == "down"
                    else f"output_blocks.{at + int(number)}"
                )
                other = f"{row}.{int(kind == 'attentions')}.{rest}"
        found[f"model.diffusion_model.{other}"] = value
    return found


def _vae(vae: Any) -> dict[str, Tensor]:
    found, last = {}, len(vae.config.block_out_channels) - 1
    for name, value in vae.state_dict().items():
        other = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        other = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", other)
        other = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", other)
        other = re.sub(
            r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{last - int(m[1])}.block.{m[2]}", other
        )
        other = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", other)
        other = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", other)
        if "mid_block.attentions.0." in other:
            head, rest = other.split("mid_block.attentions.0.")
            other = f"{head}mid.attn_1.{_renamed(rest, VAE_ATTENTION)}"
            value = value[..., None, None] if value.ndim == 2 else value
        found[f"first_stage_model.{other}"] = value
    return found


def _open_clip(encoder: Any) -> dict[str, Tensor]:
    prefix, states = "conditioner.embedders.1.model.", encoder.state_dict()
    found: dict[str, Tensor] = {}
    joined: dict[str, dict[str, Tensor]] = {}
    for name, value in states.items():
        name = name.removeprefix("text_model.")
        layer = re.match(r"encoder\.layers\.(\d+)\.(.*)\.(weight|bias)", name)
        if layer is not None:
            row, part, kind = layer.groups()
            at = f"{prefix}transformer.resblocks.{row}."
            if part.startswith("self_attn.") and part != "self_attn.out_proj":
                joined.setdefault(f"{at}attn.in_proj_{kind}", {})[part[-6]] = value
            else:
                found[f"{at}{_renamed(part, OPEN_CLIP)}.{kind}"] = value
        elif name == "text_projection.weight":
            found[f"{prefix}text_projection"] = value.T
        else:
            for own, other in (
                ("embeddings.token_embedding.weight", "token_embedding.weight"),
                ("embeddings.position_embedding.weight", "positional_embedding"),
                ("final_layer_norm.weight", "ln_final.weight"),
                ("final_layer_norm.bias", "ln_final.bias"),
            ):
                if name == own:
                    found[f"{prefix}{other}"] = value
    for name, parts in joined.items():
        found[name] = torch.cat([parts[letter] for letter in "qkv"])
    return found
