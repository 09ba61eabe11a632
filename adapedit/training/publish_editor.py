"""The trained InstructPix2Pix UNet as the one beside the built-in model: float16 safetensors, diffusers layout."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from diffusers import UNet2DConditionModel

from adapedit.editors import BUILTIN_EDITOR
from adapedit.training.generator import make_scheduler
from adapedit.training.publish import LIMIT


def publish_editor(trained: Path, out: Path) -> int:
    """Write the checkpoint `out` from `trained` (its folder `unet`, float32) and return its size in bytes.

    Tokenizer, text encoder and VAE are the built-in model's and are not written again.
    """
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    UNet2DConditionModel.from_pretrained(trained, subfolder="unet").half().save_pretrained(part / "unet")
    make_scheduler().save_pretrained(part / "scheduler")
    for path in part.rglob("*.json"):
        config = json.loads(path.read_text())
        # diffusers notes the folder that weights were loaded from: a path of whoever trained them.
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n")
    index = {
        "_class_name": "StableDiffusionInstructPix2PixPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    (part / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)
    together = sum(path.stat().st_size for path in out.parent.rglob("*") if path.is_file())
    if together > LIMIT:
        raise ValueError(
            f"{out.parent} has {together / 2**20:.1f} MiB, at most {LIMIT / 2**20:.0f} are wanted"
        )
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trained", type=Path, default=Path("out/training/pix2pix/model"))
    parser.add_argument("--out", type=Path, default=BUILTIN_EDITOR)
    args = parser.parse_args()
    print(f"{args.out}: {publish_editor(args.trained, args.out) / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
