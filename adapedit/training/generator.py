"""Stage 2: text encoder and UNet, trained together on latents, with the words' maps held to what they name."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from adapedit.scenes.captions import VOCABULARY, Caption, random_caption
from adapedit.training.checkpoint import Trainee
from adapedit.training.data import GRID, RenderedScenes, held_out, scene_at
from adapedit.training.precision import fast_products
from adapedit.training.stored import find, keep, made_from
from adapedit.training.text import HIDDEN_SIZE, make_text_encoder, make_tokenizer
from adapedit.training.vae import LATENT_CHANNELS
from adapedit_engine.models.unet import ControlledUNet

MAP_WEIGHT = 0.01
"""Weight of the map loss beside the noise loss."""

FIGURE_WEIGHT = 32.0
"""Weight of a whole figure beside the 256 cells of the latents, each of which weighs 1."""


def make_unet() -> UNet2DConditionModel:
    """An untrained UNet for 16x16x8 latents with cross-attention at 16x16, 8x8 and 4x4."""
    return UNet2DConditionModel(
        sample_size=GRID,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        cross_attention_dim=HIDDEN_SIZE,
        attention_head_dim=(2, 4, 6),  # numbers of heads, in spite of the name: 32 channels each
        norm_num_groups=16,
    )


def make_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, predicting the velocity: a small model's colours stay right at high noise."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        prediction_type="v_prediction", timestep_spacing="trailing",
    )  # fmt: skip


@torch.inference_mode()
def encode_scenes(
    vae: AutoencoderKL, scenes: RenderedScenes, path: Path, count: int, batch: int = 32
) -> NDArray[np.float16]:
    """Latents (mean, unscaled) of the first `count` scenes, [n, C, GRID, GRID] float16, kept on disk.

    What is there of another autoencoder, other scenes or another number of them is made again.
    """
    count = min(count, len(scenes.images))
    origin = made_from(vae, scenes.seed, count)
    stored = find(path, origin)
    if stored is not None:
        return stored
    parts = []
    for start in range(0, count, batch):
        pixels = torch.from_numpy(np.array(scenes.images[start : min(start + batch, count)])).permute(
            0, 3, 1, 2
        )
        pixels = (pixels.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        with fast_products():
            parts.append(vae.encode(pixels).latent_dist.mean.half().numpy())
        if start % (batch * 50) == 0:
            print(f"encoded {start}/{count}", flush=True)
    latents = np.concatenate(parts)
    keep(path, latents, origin)
    return latents


def word_targets(caption: Caption, masks: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Where each token should look. masks [2, GRID, GRID] in 0..1 -> targets [GRID*GRID, N], valid [N] bool.

    A figure's word looks at the figure, the place's word at all that is no figure. Each word is one token, after the
    start token.
    """
    targets, valid = torch.zeros(GRID * GRID, tokens), torch.zeros(tokens, dtype=torch.bool)
    figures = masks.flatten(1)
    for position, word in enumerate(caption.words, start=1):
        if word.role == "function":
            continue
        area = 1 - figures.amax(0) if word.figure is None else figures[word.figure]
        targets[:, position], valid[position] = area, True
    return targets, valid


def map_loss(maps: Tensor, targets: Tensor, valid: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy and missing share of the words' maps against where they should look.

    maps [B, P, N] attention probabilities; targets [B, P, N] in 0..1; valid [B, N]; weight [B] (less at high noise).
    Normalised over pixels, a map p and an area q give  -log(sum_q p) + KL(q || p): the first asks for the share
    inside, the second for all of the area.
    """
    share = maps / maps.sum(1, keepdim=True).clamp_min(1e-8)
    area = targets / targets.sum(1, keepdim=True).clamp_min(1e-6)
    inside = -(share * targets).sum(1).clamp_min(1e-4).log()
    divergence = (area * ((area + 1e-6).log() - (share + 1e-6).log())).sum(1)
    loss = (inside + 0.5 * divergence) * valid * weight[:, None]
    return loss.sum() / (valid * weight[:, None]).sum().clamp_min(1e-6)


def cell_weights(masks: Tensor) -> Tensor:
    """Weights [B, 1, GRID, GRID] of mean 1 for the noise loss, from the figures' masks [B, 2, GRID, GRID] in 0..1.

    What tells a boy from a girl, or a cat from a dog, is two or three cells of a small figure: by area alone they
    count for nothing. A figure weighs the same whatever its size. What minimises a squared error does not depend on
    its weights.
    """
    figures = masks / masks.sum((2, 3), keepdim=True).clamp_min(1)
    weights = 1 + FIGURE_WEIGHT * figures.sum(1, keepdim=True)
    return weights / weights.mean((2, 3), keepdim=True)


def spread_times(batch: int) -> Tensor:
    """Steps [B] int64 of the noise schedule, one from each of B even spans: each is uniform over 0..999.

    Their mean varies less from batch to batch than that of independent draws, and so does the gradient, whose size
    differs most between steps.
    """
    return ((torch.randperm(batch) + torch.rand(batch)) * (1000 / batch)).long().clamp_max(999)


class Batches:
    """Batches of latents, captions, masks; a tenth of the captions is dropped for classifier-free guidance."""

    def __init__(
        self, latents: NDArray[np.float16], scenes: RenderedScenes, tokenizer: CLIPTokenizer
    ) -> None:
        self.latents = torch.from_numpy(latents)
        self.scale = 1 / float(self.latents[:2000].float().std())
        self.scenes, self.tokenizer = scenes, tokenizer
        self.items = [scene_at(index, scenes.seed) for index in range(len(latents))]
        self.allowed = np.array([index for index, scene in enumerate(self.items) if not held_out(scene)])

    def draw(self, rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """latents [B, C, G, G] scaled, token ids [B, N], targets [B, P, N], valid [B, N], masks [B, 2, G, G]."""
        chosen = rng.choice(self.allowed, size)
        masks = torch.from_numpy(self.scenes.masks[chosen] / np.float32(255))
        texts, targets, valid = [], [], []
        length = self.tokenizer.model_max_length
        for index, areas in zip(chosen, masks, strict=True):
            words = random_caption(self.items[index], rng)
            dropped = rng.random() < 0.1
            target, known = word_targets(words, areas, length)
            texts.append("" if dropped else words.text)
            targets.append(target)
            valid.append(known & (not dropped))
        ids = self.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
        latents = self.latents[chosen].float() * self.scale
        return latents, ids, torch.stack(targets), torch.stack(valid), masks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=Path, default=Path("out/training/scenes"))
    parser.add_argument("--vae", type=Path, default=Path("out/training/vae"))
    parser.add_argument("--out", type=Path, default=Path("out/training/generator"))
    parser.add_argument(
        "--from",
        dest="start",
        type=Path,
        help="a trained model to go on from; its text encoder stays as it is",
    )
    parser.add_argument("--count", type=int, default=24000, help="scenes to train on")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()

    torch.manual_seed(0)
    if args.threads:
        torch.set_num_threads(args.threads)
    tokenizer = make_tokenizer(VOCABULARY)
    if args.start is None:
        text_encoder, unet = make_text_encoder(tokenizer), make_unet()
    else:
        text_encoder = CLIPTextModel.from_pretrained(args.start / "text_encoder", dtype=torch.float32)
        unet = UNet2DConditionModel.from_pretrained(args.start / "unet", torch_dtype=torch.float32)
        text_encoder.requires_grad_(False)  # editors of its pictures know its text encoder
    unet = unet.to(memory_format=torch.channels_last).train()
    vae = AutoencoderKL.from_pretrained(args.vae, torch_dtype=torch.float32).eval()
    scheduler = make_scheduler()
    scenes = RenderedScenes.open(args.scenes)
    batches = Batches(encode_scenes(vae, scenes, args.out / "latents.npy", args.count), scenes, tokenizer)
    if args.start is not None:  # what it was trained with
        batches.scale = float(vae.config.scaling_factor)
    vae.register_to_config(scaling_factor=batches.scale)
    trainee = Trainee(
        {"unet": unet, "text_encoder": text_encoder},
        args.out / "state.safetensors",
        steps=args.steps,
        learning_rate=args.learning_rate,
        average=0.998,
    )
    controlled = ControlledUNet(unet, map_divisor=1)
    signal = scheduler.alphas_cumprod
    rng = np.random.default_rng((11, trainee.step))
    torch.manual_seed(trainee.step)
    start, first, shown = time.perf_counter(), trainee.step, [0.0, 0.0]
    while trainee.step < args.steps:
        latents, ids, targets, valid, masks = batches.draw(rng, args.batch)
        noise, times = torch.randn_like(latents), spread_times(args.batch)
        noisy = scheduler.add_noise(latents, noise, times).contiguous(memory_format=torch.channels_last)
        with fast_products():
            text = text_encoder(ids).last_hidden_state
            output = controlled(noisy, times, text)
        goal = scheduler.get_velocity(latents, noise, times)
        noise_loss = (cell_weights(masks) * (output.noise_pred.float() - goal) ** 2).mean()
        looking = map_loss(output.cross_attention_maps.float(), targets, valid, signal[times].sqrt())
        (noise_loss + MAP_WEIGHT * looking).backward()
        trainee.update()
        for place, value in enumerate((noise_loss.item(), looking.item())):
            shown[place] += (value - shown[place]) * max(0.01, 1 / (trainee.step - first))
        if trainee.step % 50 == 0:
            rate = (trainee.step - first) * args.batch / (time.perf_counter() - start)
            print(
                f"step {trainee.step} noise {shown[0]:.4f} maps {shown[1]:.3f} {rate:.1f} samples/s",
                flush=True,
            )
        if trainee.step % args.save_every == 0 or trainee.step == args.steps:
            trainee.save()
    trainee.load_average()
    StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(args.out / "model")  # fmt: skip


if __name__ == "__main__":
    main()
