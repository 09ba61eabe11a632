"""The trained parts as the built-in model, float16 safetensors in the diffusers layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from adapedit.checkpoints import BUILTIN
from adapedit.configs import FACTS_FILE
from benchmarks.scenes.dataset import OUT
from benchmarks.scenes.generator import make_scheduler
from benchmarks.scenes.world import VOCABULARY

LIMIT = 45 * 2**20
"""Bytes that the built-in model may take in the tree."""


def publish(
    trained: Path = OUT / "generator" / "model",
    out: Path = BUILTIN,
    vae: Path | None = None,
    guidance_scale: float = 2.0,
) -> int:
    """Write the model folder `out` from `trained` (diffusers layout, float32) and return its size in bytes.

    vae: another autoencoder with the same latents (a refined decoder) in place of the trained folder's own. Knobs that
    studies found for a model that is there already stay; for other weights the studies are to be run anew. Raises
    `ValueError`, and leaves `out` as it was, where the folder would be too large.
    """
    facts_file = out / FACTS_FILE
    known = json.loads(facts_file.read_text()) if facts_file.exists() else {}
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    scale = AutoencoderKL.load_config(trained, subfolder="vae")["scaling_factor"]
    decoder = AutoencoderKL.from_pretrained(trained / "vae" if vae is None else vae)
    decoder.register_to_config(scaling_factor=scale)
    decoder.half().save_pretrained(part / "vae")
    UNet2DConditionModel.from_pretrained(trained, subfolder="unet").half().save_pretrained(part / "unet")
    encoder = CLIPTextModel.from_pretrained(trained, subfolder="text_encoder")
    encoder.half().save_pretrained(part / "text_encoder")
    CLIPTokenizer.from_pretrained(trained, subfolder="tokenizer").save_pretrained(part / "tokenizer")
    make_scheduler().save_pretrained(part / "scheduler")
    shutil.copy(trained / "model_index.json", part / "model_index.json")
    for path in part.rglob("*config.json"):
        config = json.loads(path.read_text())
        # diffusers notes the folder that weights were loaded from: a path of whoever trained them.
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n")
    facts: dict[str, object] = {"map_divisor": 1, "self_divisor": 2, "guidance_scale": guidance_scale}
    facts |= {"known_words": list(VOCABULARY), "defaults": known.get("defaults", {})}
    (part / FACTS_FILE).write_text(json.dumps(facts, indent=2) + "\n")
    size = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
    if size > LIMIT:
        raise ValueError(f"{part} has {size / 2**20:.1f} MiB, at most {LIMIT / 2**20:.0f} are wanted")
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)
    print(f"{out}: {size / 2**20:.1f} MiB")
    return size
