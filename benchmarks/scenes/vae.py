"""The autoencoder of the scene world, trained on crops (whole pictures cost four times as much)."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from benchmarks.scenes.dataset import LATENT_FACTOR, OUT, Drawings, to_pixels
from benchmarks.scenes.drawing import IMAGE_SIZE
from benchmarks.scenes.trainee import Trainee, fast_products

LATENT_CHANNELS = 8

CROP = 64
"""Side of what the autoencoder is trained on, pixels."""


def make_vae() -> AutoencoderKL:
    """An untrained autoencoder: 128x128x3 to 16x16x8."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 96, 128),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        mid_block_add_attention=False,
    )


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of pixels and of their differences, which keeps the ink lines sharp."""
    return F.l1_loss(output, target) + sum(
        F.l1_loss(output.diff(dim=d), target.diff(dim=d)) for d in (-2, -1)
    )


def crops(scenes: Drawings, rng: np.random.Generator, batch: int, size: int) -> Tensor:
    """Random crops [batch, 3, size, size] float32 in -1..1, cut on the latent grid, half of them mirrored."""
    result = np.empty((batch, size, size, 3), np.uint8)
    cells = (IMAGE_SIZE - size) // LATENT_FACTOR + 1
    for slot, index in enumerate(rng.integers(len(scenes.images), size=batch)):
        y, x = LATENT_FACTOR * rng.integers(cells, size=2)
        picture = scenes.images[index, y : y + size, x : x + size]
        result[slot] = picture[:, ::-1] if rng.random() < 0.5 else picture
    return to_pixels(result).contiguous(memory_format=torch.channels_last)


def train_vae(
    scenes: Path = OUT / "scenes",
    out: Path = OUT / "vae",
    steps: int = 4400,
    batch: int = 16,
    learning_rate: float = 1.5e-3,
    start: Path | None = None,
    decoder_only: bool = False,
    device: str = "cpu",
) -> None:
    """Train the autoencoder on the drawings in `scenes` and write it to `out`, in the layout of diffusers.

    start: the folder of a trained one to go on from. decoder_only: the latents stay as they are.
    """
    torch.manual_seed(0)
    vae = make_vae() if start is None else AutoencoderKL.from_pretrained(start, torch_dtype=torch.float32)
    vae = vae.to(device, memory_format=torch.channels_last)
    if decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    trainee = Trainee({"vae": vae}, out / "state.safetensors", steps=steps, learning_rate=learning_rate)
    drawings = Drawings.open(scenes)
    rng = np.random.default_rng((7, trainee.step))
    began, mean_loss = time.perf_counter(), 0.0
    while trainee.step < steps:
        pixels = crops(drawings, rng, batch, CROP).to(device)
        with fast_products(device):
            posterior = vae.encode(pixels).latent_dist
            output = vae.decode(posterior.sample()).sample.float()
        divergence = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean()
        loss = reconstruction_loss(output, pixels) + 5e-4 * divergence
        loss.backward()
        trainee.update()
        mean_loss += (loss.item() - mean_loss) * 0.02
        if trainee.step % 250 == 0 or trainee.step == steps:
            trainee.save()
            psnr = -10 * np.log10((output - pixels).detach().pow(2).mean().item() / 4)
            seconds = time.perf_counter() - began
            print(f"step {trainee.step} loss {mean_loss:.4f} psnr {psnr:.2f} dB {seconds:.0f} s", flush=True)
    trainee.load_average()
    vae.save_pretrained(out)
