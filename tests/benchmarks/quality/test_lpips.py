"""LPIPS against a loop over its formula, against the package where it can be imported, and files that are none."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from benchmarks.quality.lpips import NETS, Lpips, load_lpips, read_lpips
from benchmarks.quality.metrics import MetricError
from tests.helpers.lpips_weights import published

POOLS = {"alex": "0 | P 3 | P 6 | 8 | 10", "vgg": "0 2 | P 5 7 | P 10 12 14 | P 17 19 21 | P 24 26 28"}
"""The published networks written down once more: stages, their convolutions, and where a maximum is taken."""


@pytest.fixture(scope="module")
def alex(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lpips") / "alex.safetensors"
    save_file(published("alex"), path)
    return path


def picture(seed: int, side: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def plain_distance(net: str, tensors: dict[str, Tensor], one: Image.Image, two: Image.Image) -> float:
    def looks(image: Image.Image) -> list[np.ndarray]:
        pixels = torch.from_numpy(np.asarray(image).astype(np.float32) / 255).permute(2, 0, 1) * 2 - 1
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        hidden = ((pixels - shift[:, None, None]) / scale[:, None, None])[None]
        found = []
        for stage in POOLS[net].split("|"):
            for step in stage.split():
                if step == "P":
                    hidden = functional.max_pool2d(hidden, 3 if net == "alex" else 2, 2)
                    continue
                weight = tensors[f"features.{step}.weight"]
                stride, padding = {11: (4, 2), 5: (1, 2), 3: (1, 1)}[weight.shape[-1]]
                bias = tensors[f"features.{step}.bias"]
                hidden = functional.conv2d(hidden, weight, bias, stride=stride, padding=padding).clamp(min=0)
            found.append(hidden[0].double().numpy())
        return found

    total = 0.0
    for number, (f, g) in enumerate(zip(looks(one), looks(two), strict=True)):
        weight = tensors[f"lin{number}.model.1.weight"].flatten().double().numpy()
        f, g = (h / (np.sqrt((h * h).sum(0)) + 1e-10) for h in (f, g))
        pixels = [
            float((weight * (f[:, y, x] - g[:, y, x]) ** 2).sum())
            for y in range(f.shape[1])
            for x in range(f.shape[2])
        ]
        total += sum(pixels) / len(pixels)
    return total


@pytest.mark.parametrize("net", NETS)
def test_the_distance_is_that_of_the_formula(net: str, tmp_path: Path) -> None:
    tensors = published(net)
    save_file(tensors, tmp_path / "weights.safetensors")
    metric, side = load_lpips(tmp_path / "weights.safetensors"), 64 if net == "alex" else 32
    one, two = picture(0, side), picture(1, side)
    found = metric.measure(one, two, "", "")["lpips"]
    assert found == pytest.approx(plain_distance(net, tensors, one, two), rel=1e-4) and found > 0.1
    assert metric.about["LPIPS"] == net
    assert metric.measure(one, one, "", "") == {"lpips": 0.0}
    assert metric.measure(two, one, "", "")["lpips"] == pytest.approx(found, rel=1e-5)


def test_more_difference_is_more_distance(alex: Path) -> None:
    metric, one, other = load_lpips(alex), picture(0), picture(1)
    mixed = [
        metric.measure(one, Image.blend(one, other, share), "", "")["lpips"] for share in (0, 0.1, 0.4, 1)
    ]
    assert mixed == sorted(mixed) and mixed[0] == 0 < mixed[1] < mixed[3]


def test_pictures_that_cannot_be_compared(alex: Path) -> None:
    metric = load_lpips(alex)
    with pytest.raises(MetricError, match="pictures of 64 x 64 and 40 x 40 pixels; it compares equal sizes"):
        metric.measure(picture(0), picture(0, 40), "", "")
    with pytest.raises(MetricError, match="from 31 pixels a side on"):
        metric.measure(picture(0, 30), picture(1, 30), "", "")
    metric.measure(picture(0, 31), picture(1, 31), "", "")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.pop("lin3.model.1.weight"), "lin3.model.1.weight is missing, wanted .1, 256, 1, 1."),
        (lambda t: t.update({"features.8.bias": torch.zeros(9)}), "features.8.bias is .9., wanted .256."),
        (lambda t: t["features.3.weight"].fill_(torch.nan), "numbers in features.3.weight that are none"),
        (lambda t: t.clear(), "features.0.weight is missing"),
    ],
)
def test_files_that_lack_something(
    tmp_path: Path, spoil: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    tensors = published("alex")
    spoil(tensors)
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(MetricError, match=message) as error:
        read_lpips(tmp_path / "w.safetensors")
    assert "\n" not in str(error.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(MetricError, match="nothing.safetensors is no safetensors file"):
        load_lpips(tmp_path / "nothing.safetensors")
    (tmp_path / "weights.pth").write_bytes(b"PK\x03\x04 a pickle")
    with pytest.raises(MetricError, match="is no safetensors file of LPIPS weights"):
        load_lpips(tmp_path / "weights.pth")


@pytest.mark.parametrize("net", NETS)
def test_it_agrees_with_the_package(net: str, tmp_path: Path) -> None:
    try:
        package = importlib.import_module("lpips")
    except Exception as error:
        pytest.skip(f"the package lpips can't be imported: {error}")
    theirs = package.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False).eval()
    tensors = published(net)
    save_file(tensors, tmp_path / "w.safetensors")
    ours: Lpips = read_lpips(tmp_path / "w.safetensors")
    # The package names a convolution by its stage and by its place in torchvision's network.
    own = theirs.state_dict()
    with torch.no_grad():
        for name, value in own.items():
            place = name.rpartition(".")[0].rpartition(".")[2]
            if name.startswith("net."):
                value.copy_(tensors[f"features.{place}.{name.rpartition('.')[2]}"])
            elif name.endswith("model.1.weight"):
                value.copy_(tensors[f"lin{name.split('.')[-4][-1]}.model.1.weight"])
    one, two = torch.rand(2, 2, 3, 64, 64) * 2 - 1
    assert torch.allclose(ours(one, two), theirs(one, two).flatten(), rtol=1e-4)
