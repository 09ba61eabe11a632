"""LPIPS, the learned perceptual distance of Zhang et al. (2018), from a file of weights or from the package `lpips`.

The network is small enough to stand here in plain torch, so that neither torchvision nor a pickle is needed: its
weights come from a safetensors file with the names that both publishers gave them,

    features.I.weight, features.I.bias      the convolutions of torchvision's AlexNet or VGG-16
    linJ.model.1.weight [1, C, 1, 1]        the five weightings of the package lpips, v0.1

Which of the two networks it is shows in the shapes. Other entries (the classifier's) are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from adapedit_kernels.errors import AdapEditError

PACKAGE = "package"
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""From pixels in -1..1 to what the backbones were trained on."""


class LpipsError(AdapEditError):
    """Weights that are missing or are none of LPIPS, or pictures that it can't compare."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """Convolutions (place among torchvision's layers, channels in, out, kernel, stride), in stages of which each
    ends where LPIPS looks. pooled: stages that begin with a maximum over `pool` pixels, stride 2. smallest: side."""

    stages: tuple[tuple[tuple[int, int, int, int, int], ...], ...]
    pooled: tuple[int, ...]
    pool: int
    smallest: int


def _plain(*convolutions: tuple[int, int, int]) -> tuple[tuple[int, int, int, int, int], ...]:
    return tuple((place, before, after, 3, 1) for place, before, after in convolutions)


BACKBONES = {
    "alex": Backbone(
        stages=(
            ((0, 3, 64, 11, 4),),
            ((3, 64, 192, 5, 1),),
            _plain((6, 192, 384)),
            _plain((8, 384, 256)),
            _plain((10, 256, 256)),
        ),
        pooled=(1, 2),
        pool=3,
        smallest=31,
    ),
    "vgg": Backbone(
        stages=(
            _plain((0, 3, 64), (2, 64, 64)),
            _plain((5, 64, 128), (7, 128, 128)),
            _plain((10, 128, 256), (12, 256, 256), (14, 256, 256)),
            _plain((17, 256, 512), (19, 512, 512), (21, 512, 512)),
            _plain((24, 512, 512), (26, 512, 512), (28, 512, 512)),
        ),
        pooled=(1, 2, 3, 4),
        pool=2,
        smallest=16,
    ),
}


class Lpips(nn.Module):
    """Distance of pictures [B, 3, H, W] float32 in -1..1 to others of the same size: [B], 0 for equal ones.

    d = sum over stages of mean over pixels of sum over channels of w (f/|f| - f'/|f'|)^2, f the features there.
    """

    def __init__(self, net: str) -> None:
        super().__init__()
        self.net, self.backbone = net, BACKBONES[net]
        self.features = nn.ModuleDict(
            {
                # Of a kernel of 11 with stride 4 the padding is 2, else half of the kernel.
                str(place): nn.Conv2d(before, after, kernel, stride, 2 if kernel == 11 else kernel // 2)
                for stage in self.backbone.stages
                for place, before, after, kernel, stride in stage
            }
        )
        self.weights = nn.ParameterList(torch.zeros(stage[-1][2]) for stage in self.backbone.stages)

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        distance = one.new_zeros(len(one))
        for weight, f, g in zip(self.weights, self._looks(one), self._looks(two), strict=True):
            squares = (_normalised(f) - _normalised(g)).square()
            distance = distance + torch.einsum("bchw,c->bhw", squares, weight).mean((1, 2))
        return distance

    def _looks(self, pixels: Tensor) -> list[Tensor]:
        shift, scale = (pixels.new_tensor(values).view(3, 1, 1) for values in (SHIFT, SCALE))
        hidden, looks = (pixels - shift) / scale, []
        for number, stage in enumerate(self.backbone.stages):
            if number in self.backbone.pooled:
                hidden = functional.max_pool2d(hidden, self.backbone.pool, 2)
            for place, *_ in stage:
                hidden = functional.relu(self.features[str(place)](hidden))
            looks.append(hidden)
        return looks


class LpipsMetric:
    """LPIPS between the source and the edited picture, at their own size."""

    columns = ("lpips",)

    def __init__(
        self, model: Any, *, about: Mapping[str, str], smallest: int, device: str | torch.device = "cpu"
    ) -> None:
        self._model, self._device, self._smallest = model.to(device).eval(), device, smallest
        self.about = dict(about)

    def check(self, prompt: str) -> None:
        """Any prompt will do."""

    @torch.inference_mode()
    def measure(
        self, source: Image.Image, target: Image.Image, source_prompt: str, target_prompt: str
    ) -> dict[str, float]:
        """The distance of the two pictures."""
        if source.size != target.size or min(source.size) < self._smallest:
            sizes = " and ".join(f"{picture.width} x {picture.height}" for picture in (source, target))
            raise LpipsError(
                f"LPIPS got pictures of {sizes} pixels; it compares equal sizes from {self._smallest} pixels a side on"
            )
        one, two = (_pixels(picture).to(self._device) for picture in (source, target))
        return {"lpips": float(self._model(one, two))}


def load_lpips(source: str | Path | None, *, device: str | torch.device = "cpu") -> LpipsMetric:
    """From a safetensors file, or from the package `lpips` (None, "package", "package:vgg").

    The package fetches its backbone from the network and reads its own files. Raises `LpipsError`, one line.
    """
    name = PACKAGE if source is None else str(source)
    kind, _, net = name.partition(":")
    if kind == PACKAGE and not Path(name).exists():
        return _from_package(net or "alex", device)
    from adapedit.evaluation.store import fingerprint

    model = read_lpips(Path(name).expanduser())
    about = {"LPIPS": model.net, "LPIPS weights": fingerprint(model)}
    return LpipsMetric(model, about=about, smallest=model.backbone.smallest, device=device)


def read_lpips(path: Path) -> Lpips:
    """The network of a safetensors file, float32. Raises `LpipsError` for a file that lacks something."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise LpipsError(
            f"{path} is no safetensors file of LPIPS weights ({error}); docs/pairs.md says how one is made"
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
            raise LpipsError(
                f"{path} is no file of LPIPS weights ({published} is {what}, wanted {list(shape)}); "
                "docs/pairs.md says how one is made"
            )
        if not found.isfinite().all():
            raise LpipsError(
                f"{path} has numbers in {published} that are none (NaN or infinite); make it again"
            )
        state[name] = found.reshape(wanted.shape)
    model.load_state_dict(state)
    return model.requires_grad_(False).eval()


def _from_package(net: str, device: str | torch.device) -> LpipsMetric:
    if net not in BACKBONES:
        raise LpipsError(f"LPIPS has no network {net!r} here; use package:alex or package:vgg")
    try:
        import lpips
    except Exception as error:  # a torchvision that does not fit its torch fails with other errors, too
        raise LpipsError(
            f"LPIPS has no weights: give --lpips FILE.safetensors (docs/pairs.md says how it is made), or install "
            f"adapedit[metrics] and a torchvision that fits the torch here ({_reason(error)}), "
            "or leave it out with --metrics clip"
        ) from error
    try:
        model = lpips.LPIPS(net=net, verbose=False)
    except Exception as error:
        raise LpipsError(
            f"the package lpips can't load its {net} network ({_reason(error)}); give --lpips FILE.safetensors, "
            "docs/pairs.md says how it is made"
        ) from error
    from adapedit.evaluation.store import fingerprint

    about = {"LPIPS": net, "LPIPS weights": f"of the package, {fingerprint(model)}"}
    return LpipsMetric(model, about=about, smallest=BACKBONES[net].smallest, device=device)


def _normalised(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)


def _pixels(picture: Image.Image) -> Tensor:
    values = np.asarray(picture.convert("RGB"), dtype=np.float32) / 127.5 - 1
    return torch.from_numpy(values).permute(2, 0, 1)[None]


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
