"""An InstructPix2Pix UNet for the scene world; the instruction is a caption of the target."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from adapedit.model import BUILTIN
from adapedit.scenes.world import Scene
from adapedit.training.checkpoint import Trainee
from adapedit.training.data import GRID, held_out
from adapedit.training.generator import make_scheduler
from adapedit.training.pairs import edited_scenes, instruction
from adapedit.training.precision import fast_products
from adapedit.training.text import HIDDEN_SIZE
from adapedit.training.vae import LATENT_CHANNELS

DROPPED = 0.05
"""Share of the samples that lose the text, that lose the picture, and that lose both (Brooks et al. 2023)."""

SAME = 0.03
"""Share of the samples whose instruction describes the source, so that nothing is to be changed."""

UNEVEN = 0.15
"""Most noise on the source's latents: what a generator paints is not quite what the autoencoder encodes."""


def make_unet() -> UNet2DConditionModel:
    """An untrained UNet of 3.8 million weights for 16x16x8 latents beside 16x16x8 latents of the source."""
    return UNet2DConditionModel(
        sample_size=GRID,
        in_channels=2 * LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 96, 96),
        layers_per_block=1,
        cross_attention_dim=HIDDEN_SIZE,
        attention_head_dim=(2, 3, 3),  # numbers of heads, in spite of the name: 32 channels each
        norm_num_groups=16,
    )


class Triples:
    """Batches of (source, instruction, target) from groups of scenes that are edits of one another.

    sources [n, C, G, G], edits [n, EDITS, C, G, G] unscaled latents, of `edited_scenes(0 ... n - 1)`.
    """

    def __init__(
        self, sources: NDArray[np.float16], edits: NDArray[np.float16], tokenizer: CLIPTokenizer
    ) -> None:
        count = min(len(sources), len(edits))
        self.latents = torch.from_numpy(np.concatenate([sources[:count, None], edits[:count]], axis=1))
        self.groups = [edited_scenes(index) for index in range(count)]
        self.tokenizer = tokenizer

    def draw(self, rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """target and source latents [B, C, G, G], unscaled, and token ids [B, N]; with conditioning dropout."""
        texts, targets, sources = [], [], []
        for group, old, new in (self._pair(rng) for _ in range(size)):
            scenes = self.groups[group]
            chance = rng.random()
            texts.append("" if chance < 2 * DROPPED else instruction(scenes[old], scenes[new], rng))
            targets.append(self.latents[group, new].float())
            source = self.latents[group, old].float()
            if rng.random() < 0.7:
                source = source + float(rng.uniform(0, UNEVEN)) * torch.randn_like(source)
            sources.append(torch.zeros_like(source) if DROPPED <= chance < 3 * DROPPED else source)
        ids = self.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
        return torch.stack(targets), torch.stack(sources), ids

    def _pair(self, rng: np.random.Generator) -> tuple[int, int, int]:
        """A group with the places of the source and of the target in it."""
        while True:
            group = int(rng.integers(len(self.groups)))
            scenes: Sequence[Scene] = self.groups[group]
            old, new = (int(place) for place in rng.choice(len(scenes), 2, replace=False))
            # Two edits of one scene differ in two attributes or more: half as many of those.
            if (old and new and rng.random() < 0.5) or held_out(scenes[new]):
                continue
            return group, (new if rng.random() < SAME else old), new


def velocity_loss(
    unet: UNet2DConditionModel, text: Tensor, target: Tensor, source: Tensor, scale: float
) -> Tensor:
    """Mean squared error of the predicted velocity at random noise levels. target, source [B, C, G, G], unscaled.

    The source's latents stay unscaled, as in the published InstructPix2Pix.
    """
    scheduler = make_scheduler()
    latents, noise = target * scale, torch.randn_like(target)
    times = torch.randint(0, scheduler.config.num_train_timesteps, (len(target),))
    noisy = torch.cat([scheduler.add_noise(latents, noise, times), source], dim=1)
    with fast_products():
        found = unet(noisy, times, text).sample
    return F.mse_loss(found.float(), scheduler.get_velocity(latents, noise, times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=BUILTIN, help="folder of the model that edits")
    parser.add_argument("--latents", type=Path, default=Path("out/training/generator/latents.npy"))
    parser.add_argument("--edits", type=Path, default=Path("out/training/pix2pix/edits.npy"))
    parser.add_argument("--out", type=Path, default=Path("out/training/pix2pix"))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--save-every", type=int, default=250)
    args = parser.parse_args()

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(args.base, subfolder="tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(
        args.base, subfolder="text_encoder", dtype=torch.float32
    ).eval()
    unet = make_unet()
    triples = Triples(np.load(args.latents), np.load(args.edits), tokenizer)
    scale = float(AutoencoderKL.load_config(args.base, subfolder="vae")["scaling_factor"])
    trainee = Trainee(
        {"unet": unet}, args.out / "state.safetensors", steps=args.steps, learning_rate=args.learning_rate,
        average=0.998,
    )  # fmt: skip
    rng = np.random.default_rng((31, trainee.step))
    torch.manual_seed(trainee.step)
    start, first, shown = time.perf_counter(), trainee.step, 0.0
    while trainee.step < args.steps:
        target, source, ids = triples.draw(rng, args.batch)
        with torch.no_grad():
            text = text_encoder(ids).last_hidden_state
        loss = velocity_loss(unet, text, target, source, scale)
        loss.backward()
        trainee.update()
        shown += (loss.item() - shown) * max(0.01, 1 / (trainee.step - first))
        if trainee.step % 50 == 0:
            rate = (trainee.step - first) * args.batch / (time.perf_counter() - start)
            print(f"step {trainee.step} loss {shown:.4f} {rate:.1f} samples/s", flush=True)
        if trainee.step % args.save_every == 0 or trainee.step == args.steps:
            trainee.save()
    trainee.load_average()
    unet.save_pretrained(args.out / "model" / "unet")


if __name__ == "__main__":
    main()
