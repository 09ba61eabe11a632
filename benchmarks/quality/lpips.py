"""LPIPS, the learned perceptual distance of Zhang et al. (2018), from a file of weights.

The network is small enough to stand here in plain torch, so that neither torchvision nor a pickle is needed: its
weights come from a safetensors file with the names that both publishers gave them,

    features.I.weight, features.I.bias      the convolutions of torchvision's AlexNet or VGG-16
    linJ.model.1.weight [1, C, 1, 1]        the five weightings of the package lpips, v0.1

Which of the two networks it is shows in the shapes. Other entries (the classifier's) are not looked at.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from adapedit.inversion.cache import weights_digest
from benchmarks.quality.metrics import MetricError
from benchmarks.scenes.dataset import to_pixels

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""From pixels in -1..1 to what the networks were trained on."""

NETS = {
    "alex": "64/11/4 * P 192/5/1 * P 384/3/1 * 256/3/1 * 256/3/1 *",
    "vgg": " P ".join(f"{c}/3/1 " * n + "*" for c, n in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))),
}
"""Layers in torchvision's order: convolutions (channels/kernel/stride, each with its ReLU), maxima (P), looks (*)."""

POOL, SMALLEST = {"alex": 3, "vgg": 2}, {"alex": 31, "vgg": 16}
"""Side of what a maximum is taken over, and of the smallest pictures."""


class Lpips(nn.Module):
    """Distance of pictures [B, 3, H, W] float32 in -1..1 to others of the same size: [B], 0 for equal ones.

    d = sum over looks of mean over pixels of sum over channels of w (f/|f| - f'/|f'|)^2, f the features there.
    """

    def __init__(self, net: str) -> None:
        super().__init__()
        self.net, channels = net, 3
        self.features, self.weights, self.looks = nn.Sequential(), nn.ParameterList(), []
        for word in NETS[net].split():
            if word == "P":
                self.features.append(nn.MaxPool2d(POOL[net], 2))
            elif word == "*":
                self.looks.append(len(self.features) - 1)
                self.weights.append(torch.zeros(channels))
            else:
                before, (channels, kernel, stride) = channels, map(int, word.split("/"))
                padding = 2 if kernel == 11 else kernel // 2  # of a kernel of 11 with stride 4 it is 2
                self.features.extend([nn.Conv2d(before, channels, kernel, stride, padding), nn.ReLU()])

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        distance = one.new_zeros(len(one))
        for weight, f, g in zip(self.weights, self._seen(one), self._seen(two), strict=True):
            squares = (_unit(f) - _unit(g)).square()
            distance = distance + torch.einsum("bchw,c->bhw", squares, weight).mean((1, 2))
        return distance

    def _seen(self, pixels: Tensor) -> list[Tensor]:
        shift, scale = (pixels.new_tensor(values).view(3, 1, 1) for values in (SHIFT, SCALE))
        hidden, seen = (pixels - shift) / scale, []
        for place, layer in enumerate(self.features):
            hidden = layer(hidden)
            if place in self.looks:
                seen.append(hidden)
        return seen


class LpipsMetric:
    """LPIPS between the source and the edited picture, at their own size."""

    columns = ("lpips",)

    def __init__(self, model: Lpips, *, device: str | torch.device = "cpu") -> None:
        self._model, self._device, self._smallest = model.to(device).eval(), device, SMALLEST[model.net]
        self.about = {"LPIPS": model.net, "LPIPS weights": weights_digest(model)[:8]}

    def check(self, prompt: str) -> None:
        """Any prompt will do."""

    @torch.inference_mode()
    def measure(
        self, source: Image.Image, target: Image.Image, source_prompt: str, target_prompt: str
    ) -> dict[str, float]:
        """The distance of the two pictures."""
        if source.size != target.size or min(source.size) < self._smallest:
            sizes = " and ".join(f"{picture.width} x {picture.height}" for picture in (source, target))
            raise MetricError(
                f"LPIPS got pictures of {sizes} pixels; it compares equal sizes from {self._smallest} pixels a side on"
            )
        pictures = (np.asarray(picture.convert("RGB"))[None] for picture in (source, target))
        return {"lpips": float(self._model(*(to_pixels(picture).to(self._device) for picture in pictures)))}


def load_lpips(path: str | Path, *, device: str | torch.device = "cpu") -> LpipsMetric:
    """The metric by a safetensors file. Raises `MetricError`, one line."""
    return LpipsMetric(read_lpips(Path(path).expanduser()), device=device)


def read_lpips(path: Path) -> Lpips:
    """The network of a safetensors file, float32. Raises `MetricError` for a file that lacks something."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise MetricError(
            f"{path} is no safetensors file of LPIPS weights ({error}); docs/quality.md says how one is made"
        ) from error
    first = tensors.get("features.0.weight", torch.empty(0))
    model = Lpips("alex" if first.shape[-1:] == (11,) else "vgg")
    state = {}
    for name, wanted in model.state_dict().items():
        kind, place, *_ = name.split(".")
        published = name if kind == "features" else f"lin{place}.model.1.weight"
        shape = wanted.shape if kind == "features" else torch.Size((1, len(wanted), 1, 1))
        found = tensors.get(published)
        if found is None or found.shape != shape:
            what = "missing" if found is None else str(list(found.shape))
            raise MetricError(
                f"{path} is no file of LPIPS weights ({published} is {what}, wanted {list(shape)}); "
                "docs/quality.md says how one is made"
            )
        if not found.isfinite().all():
            raise MetricError(
                f"{path} has numbers in {published} that are none (NaN or infinite); make it again"
            )
        state[name] = found.reshape(wanted.shape)
    model.load_state_dict(state)
    return model.requires_grad_(False).eval()


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)
