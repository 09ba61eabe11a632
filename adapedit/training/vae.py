"""Stage 1: the autoencoder of the scene world, trained on crops (whole pictures cost four times as much)."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from adapedit.scenes.render import IMAGE_SIZE
from adapedit.training.checkpoint import Trainee
from adapedit.training.data import RenderedScenes
from adapedit.training.precision import fast_products

LATENT_CHANNELS = 8


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


def edges(image: Tensor) -> tuple[Tensor, Tensor]:
    return image[..., 1:, :] - image[..., :-1, :], image[..., 1:] - image[..., :-1]


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of pixels and of their differences, which keeps the ink lines sharp."""
    loss = F.l1_loss(output, target)
    return loss + sum(F.l1_loss(a, b) for a, b in zip(edges(output), edges(target), strict=True))


def crops(scenes: RenderedScenes, rng: np.random.Generator, batch: int, size: int) -> Tensor:
    """Random crops [batch, 3, size, size] float32 in -1..1, cut on the latent grid, half of them mirrored."""
    result = np.empty((batch, size, size, 3), np.uint8)
    cells = (IMAGE_SIZE - size) // 8 + 1
    for slot, index in enumerate(rng.integers(len(scenes.images), size=batch)):
        y, x = 8 * rng.integers(cells, size=2)
        picture = scenes.images[index, y : y + size, x : x + size]
        result[slot] = picture[:, ::-1] if rng.random() < 0.5 else picture
    pixels = torch.from_numpy(result).permute(0, 3, 1, 2)
    return (pixels.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=Path, default=Path("out/training/scenes"))
    parser.add_argument("--out", type=Path, default=Path("out/training/vae"))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument(
        "--decoder-only", action="store_true", help="keep the latents: refine how they are drawn"
    )
    parser.add_argument("--from", dest="start", type=Path, help="diffusers folder to start from")
    parser.add_argument("--save-every", type=int, default=250)
    args = parser.parse_args()

    torch.manual_seed(0)
    vae = (
        make_vae()
        if args.start is None
        else AutoencoderKL.from_pretrained(args.start, torch_dtype=torch.float32)
    )
    vae = vae.to(memory_format=torch.channels_last)
    if args.decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    trainee = Trainee(
        {"vae": vae}, args.out / "state.safetensors", steps=args.steps, learning_rate=args.learning_rate
    )
    scenes = RenderedScenes.open(args.scenes)
    rng = np.random.default_rng((7, trainee.step))
    start, mean_loss = time.perf_counter(), 0.0
    while trainee.step < args.steps:
        pixels = crops(scenes, rng, args.batch, args.crop)
        with fast_products():
            posterior = vae.encode(pixels).latent_dist
            output = vae.decode(posterior.sample()).sample.float()
        divergence = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean()
        loss = reconstruction_loss(output, pixels) + 5e-4 * divergence
        loss.backward()
        trainee.update()
        mean_loss += (loss.item() - mean_loss) * 0.02
        if trainee.step % args.save_every == 0 or trainee.step == args.steps:
            trainee.save()
            error = (output - pixels).detach().pow(2).mean().item() / 4
            seconds = time.perf_counter() - start
            psnr = -10 * np.log10(error)
            print(f"step {trainee.step} loss {mean_loss:.4f} psnr {psnr:.2f} dB {seconds:.0f} s", flush=True)
    trainee.load_average()
    vae.save_pretrained(args.out)


if __name__ == "__main__":
    main()
