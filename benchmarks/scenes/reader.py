"""The reader: a small classifier that says what a picture of the scene world shows; and the nearest true drawing.

It is trained on drawings alone, blurred and jittered, so that it reads imperfect ones too: the judge, not the artist.
It names attributes whatever it is shown; a second head or a patchwork coat it can't see. But the world is small: its
drawings are a function of the attributes and a few numbers. So the numbers are fitted, and what is left is a fault.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.ndimage import uniform_filter
from torch import Tensor, nn

from adapedit import AdapEditError
from benchmarks.scenes.dataset import HELD_OUT_SEED, OUT, Drawings, scene_at, to_pixels
from benchmarks.scenes.drawing import IMAGE_SIZE, render
from benchmarks.scenes.trainee import Trainee, fast_products
from benchmarks.scenes.world import (
    FIGURE_ATTRIBUTES,
    PLACES,
    SPREADS,
    Figure,
    Layout,
    Scene,
)

HEADS: dict[str, int] = {
    "count": 2,
    "place": len(PLACES),
    **{f"{name}{slot}": len(values) for slot in (0, 1) for name, values in FIGURE_ATTRIBUTES.items()},
}
"""What is read: number of figures, place, and the attributes of the left (0) and the right (1) figure."""


TRAINED = Path(__file__).with_name("reader.safetensors")
"""The trained weights, float16."""


FIT_SIZE = IMAGE_SIZE // 2
"""Side at which drawings are tried."""

STEPS = (0.6, 0.3)
"""By how much the numbers of a layout are changed, one after the other, in standard deviations."""

SCAN = (-2.0, -1.0, 0.0, 1.0, 2.0)
"""Numbers that are tried of what has many hollows."""

EXACT = 0.3
"""Mean difference, grey levels, of a drawing that there is nothing to fit of."""

TOLERANCE = 2
"""Pixels by which an edge may be off."""

WINDOW = 11
"""Side of the square whose mean difference is looked at: a fault fills it, a crooked line does not."""

WELL_DRAWN = 0.22
"""The largest distance of a picture without a fault: between that of true drawings and that of spoilt ones."""


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
    """Pictures [B, 3, 128, 128] float32 in -1..1 to logits per head [B, classes], and "layout": `Layout.numbers`."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _stage(3, 16), _stage(16, 32), _stage(32, 64), _stage(64, 96), nn.Conv2d(96, 48, 1)
        )
        self.hidden = nn.Sequential(
            nn.Flatten(), nn.Linear(48 * 8 * 8, 256), nn.ReLU(inplace=True), nn.Dropout(0.1)
        )
        classes = {**HEADS, "layout": len(SPREADS)}
        self.heads = nn.ModuleDict({name: nn.Linear(256, count) for name, count in classes.items()})

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        hidden = self.hidden(self.features(pixels))
        return {name: head(hidden) for name, head in self.heads.items()}

    @torch.inference_mode()
    def read(self, pixels: Tensor) -> list[Scene]:
        """What each picture shows."""
        found = self(pixels)
        layouts = found.pop("layout").tolist()
        answers = {name: logits.argmax(1).tolist() for name, logits in found.items()}
        scenes = []
        for row, numbers in enumerate(layouts):
            seen = {name: of[row] for name, of in answers.items()}
            figures = tuple(
                Figure(**{name: words[seen[f"{name}{slot}"]] for name, words in FIGURE_ATTRIBUTES.items()})
                for slot in range(seen["count"] + 1)
            )
            layout = Layout.of(numbers, len(figures))
            scenes.append(Scene(figures=figures, place=PLACES[seen["place"]], layout=layout))
        return scenes


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


def fit_scene(image: NDArray[np.uint8], scene: Scene) -> Scene:
    """The scene with the attributes of `scene` whose drawing is nearest to a picture [S, S, 3]; its layout: a start."""
    small = np.asarray(Image.fromarray(image).resize((FIT_SIZE, FIT_SIZE), Image.Resampling.BOX), np.float32)
    numbers, count = scene.layout.numbers(), len(scene.figures)

    def error(values: list[float]) -> float:
        tried = dataclasses.replace(scene, layout=Layout.of(values, count))
        return float(np.abs(render(tried, FIT_SIZE).image - small).mean())

    places = [i for i in range(len(SPREADS)) if count == 2 or i not in (1, 4)]
    best = error(numbers)
    for step in STEPS if best > EXACT else ():
        for place in places:
            # Boats and houses may be anywhere: near ones do not lead there, so all places are looked at.
            for value in SCAN if SPREADS[place][0] in ("x", "scenery", "horizon") else ():
                tried = [value if i == place else number for i, number in enumerate(numbers)]
                if (found := error(tried)) < best:
                    numbers, best = tried, found
            for change in (step, -step):
                while True:
                    tried = [value + change * (i == place) for i, value in enumerate(numbers)]
                    if (found := error(tried)) >= best:
                        break
                    numbers, best = tried, found
    return dataclasses.replace(scene, layout=Layout.of(numbers, count))


def distance(image: NDArray[np.uint8], drawing: NDArray[np.uint8]) -> float:
    """How far a picture is from a drawing where it is worst, 0..1: the largest mean over a window.

    Of a pixel: the least difference (largest of the three channels) to a pixel of the drawing at most `TOLERANCE` away.
    """
    one, two = (
        uniform_filter(np.asarray(picture, np.float32) / 255, (3, 3, 1)) for picture in (image, drawing)
    )
    reach = TOLERANCE
    around = np.pad(two, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    off = np.full(one.shape[:2], np.inf, np.float32)
    for y in range(2 * reach + 1):
        for x in range(2 * reach + 1):
            shifted = around[y : y + len(one), x : x + len(one)]
            off = np.minimum(off, np.abs(one - shifted).max(2))
    return float(uniform_filter(off, WINDOW).max())


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


def loss_of(answers: dict[str, Tensor], truth: Tensor, layouts: Tensor) -> Tensor:
    """Cross-entropy of the heads that have something to say, and squared error of the layout.

    truth [B, heads] int64, -1 = nothing; layouts [B, numbers].
    """
    losses = [
        F.cross_entropy(answers[name].float(), truth[:, place], ignore_index=-1)
        for place, name in enumerate(HEADS)
    ]
    return torch.stack(losses).nansum() + 2 * F.mse_loss(answers["layout"].float(), layouts)


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
    start: Path | None = None,
    steps: int = 2000,
    batch: int = 64,
) -> None:
    """Train the reader on the drawings in `scenes` and write its weights to `out`.

    start: weights to go on from, as far as they fit: those of heads that read other words are begun anew.
    """
    torch.manual_seed(0)
    reader, drawings = Reader(), Drawings.open(scenes)
    if start is not None:
        known = reader.state_dict()
        fit = {name: v for name, v in load_file(start).items() if known[name].shape == v.shape}
        reader.load_state_dict({**known, **fit})
    trainee = Trainee({"reader": reader}, state, steps=steps, learning_rate=1.5e-3, average=0.995)
    drawn = [scene_at(i, drawings.seed) for i in range(len(drawings.images))]
    truth = torch.tensor([[labels(scene)[name] for name in HEADS] for scene in drawn])
    layouts = torch.tensor([scene.layout.numbers() for scene in drawn])
    rng = np.random.default_rng((13, trainee.step))
    while trainee.step < steps:
        chosen = np.sort(rng.integers(len(drawings.images), size=batch))
        pixels = jitter(to_pixels(drawings.images[chosen])).contiguous(memory_format=torch.channels_last)
        with fast_products():
            answers = reader(pixels)
        loss = loss_of(answers, truth[chosen], layouts[chosen])
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
