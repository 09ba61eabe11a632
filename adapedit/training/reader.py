"""The reader's training: rendered scenes only, blurred and jittered, so that it reads imperfect drawings too."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from adapedit.scenes.reader import BUILTIN, HEADS, Reader, labels
from adapedit.scenes.render import render
from adapedit.training.checkpoint import Trainee
from adapedit.training.data import HELD_OUT_SEED, RenderedScenes, scene_at
from adapedit.training.precision import fast_products


def to_pixels(images: np.ndarray) -> Tensor:
    """[B, S, S, 3] uint8 to [B, 3, S, S] float32 in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def jitter(pixels: Tensor) -> Tensor:
    """Blur, shift, noise and a little colour drift: what a generator's pictures have and rendered ones lack."""
    batch = len(pixels)
    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    pixels = torch.lerp(pixels, blurred, torch.rand(batch, 1, 1, 1))
    shift = torch.randint(-4, 5, (2,)).tolist()
    padded = F.pad(pixels, (4, 4, 4, 4), mode="replicate")
    pixels = padded[:, :, 4 + shift[0] : 132 + shift[0], 4 + shift[1] : 132 + shift[1]]
    gain, offset = 1 + 0.08 * torch.randn(batch, 3, 1, 1), 0.05 * torch.randn(batch, 3, 1, 1)
    return pixels * gain + offset + 0.08 * torch.rand(batch, 1, 1, 1) * torch.randn_like(pixels)


def loss_of(answers: dict[str, Tensor], truth: Tensor) -> Tensor:
    """Mean cross-entropy over the heads that have something to say. truth [B, heads] int64, -1 = nothing."""
    losses = [
        F.cross_entropy(answers[name].float(), truth[:, place], ignore_index=-1)
        for place, name in enumerate(HEADS)
    ]
    return torch.stack(losses).nansum()


@torch.inference_mode()
def accuracy(reader: Reader, count: int = 2000) -> dict[str, float]:
    """Share of right answers per head on held-out rendered scenes."""
    right, asked = np.zeros(len(HEADS)), np.zeros(len(HEADS))
    for start in range(0, count, 100):
        scenes = [scene_at(index, HELD_OUT_SEED) for index in range(start, start + 100)]
        answers = reader(to_pixels(np.stack([render(scene).image for scene in scenes])))
        truth = np.array([[labels(scene)[name] for name in HEADS] for scene in scenes])
        guess = np.stack([answers[name].argmax(1).numpy() for name in HEADS], axis=1)
        right += ((guess == truth) & (truth >= 0)).sum(0)
        asked += (truth >= 0).sum(0)
    return dict(zip(HEADS, (right / asked).tolist(), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=Path, default=Path("out/training/scenes"))
    parser.add_argument("--state", type=Path, default=Path("out/training/reader/state.safetensors"))
    parser.add_argument("--out", type=Path, default=BUILTIN)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()

    torch.manual_seed(0)
    reader = Reader()
    trainee = Trainee({"reader": reader}, args.state, steps=args.steps, learning_rate=1.5e-3, average=0.995)
    scenes = RenderedScenes.open(args.scenes)
    truth = torch.tensor(
        [[labels(scene_at(i, scenes.seed))[name] for name in HEADS] for i in range(len(scenes.images))]
    )
    rng = np.random.default_rng((13, trainee.step))
    while trainee.step < args.steps:
        chosen = np.sort(rng.integers(len(scenes.images), size=args.batch))
        pixels = jitter(to_pixels(scenes.images[chosen])).contiguous(memory_format=torch.channels_last)
        with fast_products():
            answers = reader(pixels)
        loss = loss_of(answers, truth[chosen])
        loss.backward()
        trainee.update()
        if trainee.step % 100 == 0:
            print(f"step {trainee.step} loss {loss.item():.4f}", flush=True)
        if trainee.step % 200 == 0 or trainee.step == args.steps:
            trainee.save()
    trainee.load_average()
    reader.eval()
    print("accuracy on held-out renders", {name: round(value, 4) for name, value in accuracy(reader).items()})
    args.out.parent.mkdir(parents=True, exist_ok=True)
    part = args.out.with_suffix(".part")
    state = reader.state_dict()
    save_file({name: v.half() if v.is_floating_point() else v for name, v in state.items()}, part)
    os.replace(part, args.out)


if __name__ == "__main__":
    main()
