"""The reader: a small classifier that says what a picture of the scene world shows. It is the judge, not the artist."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from adapedit.scenes.world import FIGURE_ATTRIBUTES, PLACES, Figure, Scene

HEADS: dict[str, int] = {
    "count": 2,
    "place": len(PLACES),
    **{f"{name}{slot}": len(values) for slot in (0, 1) for name, values in FIGURE_ATTRIBUTES.items()},
}
"""What is read: number of figures, place, and the attributes of the left (0) and the right (1) figure."""

BUILTIN = Path(__file__).parent.parent / "models" / "reader" / "reader.safetensors"


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
        return [
            (
                tuple(
                    Figure(
                        **{
                            name: values[answers[f"{name}{slot}"][row]]
                            for name, values in FIGURE_ATTRIBUTES.items()
                        }
                    )
                    for slot in range(answers["count"][row] + 1)
                ),
                PLACES[answers["place"][row]],
            )
            for row in range(len(pixels))
        ]


def labels(scene: Scene) -> dict[str, int]:
    """The right answer of every head; -1 where a head has nothing to say (the right figure of a single one)."""
    result = {"count": len(scene.figures) - 1, "place": PLACES.index(scene.place)}
    for slot in (0, 1):
        for name, values in FIGURE_ATTRIBUTES.items():
            there = slot < len(scene.figures)
            result[f"{name}{slot}"] = values.index(getattr(scene.figures[slot], name)) if there else -1
    return result


def load_reader(path: Path = BUILTIN) -> Reader:
    """The trained reader, in evaluation mode, float32."""
    reader = Reader()
    reader.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return reader.eval()
