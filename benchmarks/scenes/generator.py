"""Tokenizer, text encoder and UNet, trained together on latents, with the words' maps held to what they name."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from adapedit.checkpoints import BUILTIN
from adapedit.configs import FACTS_FILE
from adapedit_engine.models.unet import ControlledUNet
from benchmarks.scenes.dataset import GRID, OUT, Drawings, encode_scenes, held_out, scene_at
from benchmarks.scenes.trainee import Trainee, fast_products
from benchmarks.scenes.vae import LATENT_CHANNELS
from benchmarks.scenes.world import VOCABULARY, Caption, random_caption

MAX_TOKENS = 24
"""Start, up to 22 words, end: the longest caption of two figures has 18."""

START, END = "<|startoftext|>", "<|endoftext|>"
HIDDEN_SIZE = 128

LIMIT = 45 * 2**20
"""Bytes that the built-in model may take in the tree."""

MAP_WEIGHT = 0.01
"""Weight of the map loss beside the noise loss."""

MIN_SNR = 5.0
"""Where the loss of the clean latents stops to grow with the signal (Hang et al. 2023, with SNR + 1 for SNR)."""

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


def _pieces(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding of one word with the merges so far, the lowest rank first."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    while len(pieces) > 1:
        rank, place = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(pairwise(pieces)))
        if rank == len(ranks):
            break
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
    return pieces


def make_tokenizer(words: Iterable[str]) -> CLIPTokenizer:
    """A CLIP tokenizer to which each of `words` is one token.

    Merges are added word by word, each joining what the earlier ones leave of it; later merges rank lower, so
    they never break an earlier word. The vocabulary also holds pieces of words; no known text ever shows one.
    """
    vocabulary: dict[str, int] = {}
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        for letter in (*word[:-1], word[-1] + "</w>"):
            vocabulary.setdefault(letter, len(vocabulary))
        left, *rest = _pieces(word, ranks)
        for right in rest:
            ranks[left, right] = len(ranks)
            left += right
            vocabulary.setdefault(left, len(vocabulary))
    for special in (START, END):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(
        vocab=vocabulary, merges=list(ranks), unk_token=END, bos_token=START, eos_token=END, pad_token=END,
        model_max_length=MAX_TOKENS,
    )  # fmt: skip


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained text encoder: 3 causal layers of 128, a 24-token window."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=HIDDEN_SIZE, intermediate_size=4 * HIDDEN_SIZE,
            projection_dim=HIDDEN_SIZE, num_hidden_layers=3, num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip


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
    """Steps [B] int64 of the noise schedule, one from each of B spans of 0..999: half of them are above 600.

    High noise is where it is decided what is where, and of which colour. The mean varies less from batch to batch than
    that of independent draws, and so does the gradient, whose size differs most between steps.
    """
    even = (torch.randperm(batch) + torch.rand(batch)) / batch
    return (1000 * even**0.7).long().clamp_max(999)


class Batches:
    """Batches of latents, captions, masks; a tenth of the captions is dropped for classifier-free guidance."""

    def __init__(self, latents: NDArray[np.float16], scenes: Drawings, tokenizer: CLIPTokenizer) -> None:
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


def train_generator(
    vae: Path = OUT / "vae",
    out: Path = OUT / "generator",
    start: Path | None = None,
    count: int = 24000,
    steps: int = 5000,
    batch: int = 32,
    learning_rate: float = 1e-3,
    device: str = "cpu",
) -> None:
    """Train text encoder and UNet on the first `count` drawings and write the whole model to `out`/model.

    start: a trained model of the same words to go on from.
    """
    torch.manual_seed(0)
    tokenizer, scheduler, drawings = (
        make_tokenizer(VOCABULARY),
        make_scheduler(),
        Drawings.open(OUT / "scenes"),
    )
    if start is None:
        text_encoder, unet = make_text_encoder(tokenizer), make_unet()
    else:
        text_encoder = CLIPTextModel.from_pretrained(start / "text_encoder", dtype=torch.float32)
        unet = UNet2DConditionModel.from_pretrained(start / "unet", torch_dtype=torch.float32)
    unet = unet.to(device, memory_format=torch.channels_last).train()
    text_encoder = text_encoder.to(device)
    encoder = AutoencoderKL.from_pretrained(vae, torch_dtype=torch.float32).eval().to(device)
    batches = Batches(encode_scenes(encoder, drawings, out, count), drawings, tokenizer)
    encoder.register_to_config(scaling_factor=batches.scale)
    trainee = Trainee(
        {"unet": unet, "text_encoder": text_encoder}, out / "state.safetensors",
        steps=steps, learning_rate=learning_rate, warm_up=60, average=0.998,
    )  # fmt: skip
    _train(trainee, ControlledUNet(unet, map_divisor=1), text_encoder, batches, batch)
    StableDiffusionPipeline(
        vae=encoder, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(out / "model")  # fmt: skip


def _train(
    trainee: Trainee, unet: ControlledUNet, text_encoder: CLIPTextModel, batches: Batches, size: int
) -> None:
    """All steps that are left, saved every 200; the modules end with the running average of their weights."""
    scheduler, device = make_scheduler(), next(unet.parameters()).device
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(device)
    rng = np.random.default_rng((11, trainee.step))
    torch.manual_seed(trainee.step)
    began, first, shown = time.perf_counter(), trainee.step, [0.0, 0.0]
    while trainee.step < trainee.steps:
        latents, ids, targets, valid, masks = (part.to(device) for part in batches.draw(rng, size))
        noise, times = torch.randn_like(latents), spread_times(size).to(device)
        noisy = scheduler.add_noise(latents, noise, times).contiguous(memory_format=torch.channels_last)
        with fast_products(device.type):
            output = unet(noisy, times, text_encoder(ids).last_hidden_state)
        goal = scheduler.get_velocity(latents, noise, times)
        signal = scheduler.alphas_cumprod[times]
        errors = (cell_weights(masks) * (output.noise_pred.float() - goal) ** 2).mean((1, 2, 3))
        noise_loss = (errors * (MIN_SNR * (1 - signal)).clamp_max(1)).mean()
        weight = signal.sqrt()
        looking = map_loss(output.cross_attention_maps.float(), targets, valid, weight)
        (noise_loss + MAP_WEIGHT * looking).backward()
        trainee.update()
        for place, value in enumerate((noise_loss.item(), looking.item())):
            shown[place] += (value - shown[place]) * max(0.01, 1 / (trainee.step - first))
        if trainee.step % 50 == 0:
            rate = (trainee.step - first) * size / (time.perf_counter() - began)
            print(
                f"step {trainee.step} noise {shown[0]:.4f} maps {shown[1]:.3f} {rate:.1f} samples/s",
                flush=True,
            )
        if trainee.step % 200 == 0 or trainee.step == trainee.steps:
            trainee.save()
    trainee.load_average()


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
    if (about := out / "README.md").exists():
        shutil.copy(about, part / about.name)
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
