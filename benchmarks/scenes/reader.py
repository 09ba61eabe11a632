"""The reader: a small classifier that says what a picture of the scene world shows, and its training.

It is trained on drawings alone, blurred and jittered, so that it reads imperfect ones too: the judge, not the artist.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapedit import AdapEditError
from benchmarks.scenes.dataset import HELD_OUT_SEED, OUT, Drawings, scene_at, to_pixels
from benchmarks.scenes.drawing import render
from benchmarks.scenes.trainee import Trainee, fast_products
from benchmarks.scenes.world import FIGURE_ATTRIBUTES, PLACES, Figure, Scene

HEADS: dict[str, int] = {
    "count": 2,
    "place": len(PLACES),
    **{f"{name}{slot}": len(values) for slot in (0, 1) for name, values in FIGURE_ATTRIBUTES.items()},
}
"""What is read: number of figures, place, and the attributes of the left (0) and the right (1) figure."""

TRAINED = Path(__file__).with_name("reader.safetensors")
"""The trained weights, float16."""


def _stage(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


class Reader(nn.Module):
    """Pictures [B, 3, 128, 128] float32 in -1..1 to logits per head, each [B, classes]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _stage(3, 16), _stage(16, 32), _stage(32, 64), _stage(64, 96), nn.Conv2d(96, 48, 1)
        )
        self.hidden = nn.Sequential(
            nn.Flatten(), nn.Linear(48 * 8 * 8, 256), nn.ReLU(inplace=True), nn.Dropout(0.1)
        )
        self.heads = nn.ModuleDict({name: nn.Linear(256, classes) for name, classes in HEADS.items()})

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        hidden = self.hidden(self.features(pixels))
        return {name: head(hidden) for name, head in self.heads.items()}

    @torch.inference_mode()
    def read(self, pixels: Tensor) -> list[tuple[tuple[Figure, ...], str]]:
        """What each picture shows: its figures from left to right, and the place."""
        answers = {name: logits.argmax(1).tolist() for name, logits in self(pixels).items()}
        found = []
        for row in range(len(pixels)):
            seen = {name: of[row] for name, of in answers.items()}
            figures = [
                Figure(**{name: values[seen[f"{name}{slot}"]] for name, values in FIGURE_ATTRIBUTES.items()})
                for slot in range(seen["count"] + 1)
            ]
            found.append((tuple(figures), PLACES[seen["place"]]))
        return found


def labels(scene: Scene) -> dict[str, int]:
    """The right answer of every head; -1 where a head has nothing to say (the right figure of a single one)."""
    result = {"count": len(scene.figures) - 1, "place": PLACES.index(scene.place)}
    for slot in (0, 1):
        for name, values in FIGURE_ATTRIBUTES.items():
            there = slot < len(scene.figures)
            result[f"{name}{slot}"] = values.index(getattr(scene.figures[slot], name)) if there else -1
    return result


def load_reader(path: Path = TRAINED) -> Reader:
    """The trained reader, in evaluation mode, float32. Raises `AdapEditError` where its weights are missing."""
    if not path.exists():
        raise AdapEditError(
            f"the reader's weights are not at {path}; train it: python -m benchmarks.scenes reader"
        )
    reader = Reader()
    reader.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return reader.eval()


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


def train_reader(
    scenes: Path = OUT / "scenes",
    state: Path = OUT / "reader" / "state.safetensors",
    out: Path = TRAINED,
    steps: int = 2000,
    batch: int = 64,
) -> None:
    """Train the reader on the drawings in `scenes` and write its weights to `out`."""
    torch.manual_seed(0)
    reader, drawings = Reader(), Drawings.open(scenes)
    trainee = Trainee({"reader": reader}, state, steps=steps, learning_rate=1.5e-3, average=0.995)
    known = [labels(scene_at(i, drawings.seed)) for i in range(len(drawings.images))]
    truth = torch.tensor([[answers[name] for name in HEADS] for answers in known])
    rng = np.random.default_rng((13, trainee.step))
    while trainee.step < steps:
        chosen = np.sort(rng.integers(len(drawings.images), size=batch))
        pixels = jitter(to_pixels(drawings.images[chosen])).contiguous(memory_format=torch.channels_last)
        with fast_products():
            answers = reader(pixels)
        loss = loss_of(answers, truth[chosen])
        loss.backward()
        trainee.update()
        if trainee.step % 100 == 0:
            print(f"step {trainee.step} loss {loss.item():.4f}", flush=True)
        if trainee.step % 200 == 0 or trainee.step == steps:
            trainee.save()
    trainee.load_average()
    reader.eval()
    print(
        "accuracy on held-out drawings", {name: round(value, 4) for name, value in accuracy(reader).items()}
    )
    part, found = out.with_suffix(".part"), reader.state_dict()
    save_file({name: v.half() if v.is_floating_point() else v for name, v in found.items()}, part)
    os.replace(part, out)
