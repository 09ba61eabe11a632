"""CLIP score and directional similarity against the plain formulas, and checkpoints that can't be used."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from adapedit import AdapEditError
from benchmarks.quality.metrics import ClipMetric, MetricError, load_clip
from tests.helpers.tiny_clip import VIT_L_14, save_clip
from tests.helpers.tokenizers import small_clip_tokenizer

RED, BLUE = "a red dog", "a blue dog on the grass"
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels that CLIP was trained on, as published."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"), tokens=20)


@pytest.fixture(scope="module")
def clip(folder: Path) -> ClipMetric:
    return load_clip(folder)


def picture(seed: int, width: int = 48, height: int = 32) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def plain_figures(folder: Path, source: Image.Image, target: Image.Image, side: int) -> dict[str, float]:
    """The formulas in NumPy, on what the bare model says of pixels that were prepared by hand."""
    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer = small_clip_tokenizer()

    def image(one: Image.Image) -> np.ndarray:
        scale = side / min(one.size)
        wide = one.resize((round(one.width * scale), round(one.height * scale)), Image.Resampling.BICUBIC)
        left, top = (wide.width - side) // 2, (wide.height - side) // 2
        values = np.asarray(wide.crop((left, top, left + side, top + side))).astype(np.float64) / 255
        pixels = torch.from_numpy((values - MEAN) / DEVIATION).permute(2, 0, 1)[None].float()
        with torch.inference_mode():
            hidden = model.vision_model(pixel_values=pixels).pooler_output
            return unit(hidden[0].numpy() @ model.visual_projection.weight.numpy().T)

    def text(prompt: str) -> np.ndarray:
        ids = torch.tensor([tokenizer(prompt).input_ids])
        with torch.inference_mode():
            hidden = model.text_model(input_ids=ids).last_hidden_state[0, -1]
            return unit(hidden.numpy() @ model.text_projection.weight.numpy().T)

    def unit(vector: np.ndarray) -> np.ndarray:
        return vector / np.sqrt((vector * vector).sum())

    x, edited, c, wanted = image(source), image(target), text(RED), text(BLUE)
    return {
        "clip_score": 100 * float(edited @ wanted),
        "clip_directional": float(unit(edited - x) @ unit(wanted - c)),
        "clip_image": float(x @ edited),
    }


def test_figures_are_those_of_the_formulas(folder: Path, clip: ClipMetric) -> None:
    source, target = picture(0), picture(1)
    found = clip.measure(source, target, RED, BLUE)
    assert found == pytest.approx(plain_figures(folder, source, target, 32), abs=2e-4)
    assert tuple(found) == clip.columns


def test_order_of_pictures_and_prompts_matters(clip: ClipMetric) -> None:
    source, target = picture(0), picture(1)
    there, back = clip.measure(source, target, RED, BLUE), clip.measure(target, source, BLUE, RED)
    assert there["clip_directional"] == pytest.approx(back["clip_directional"], abs=1e-6)
    assert there["clip_score"] != pytest.approx(back["clip_score"], abs=1e-3)
    against = clip.measure(source, target, BLUE, RED)["clip_directional"]
    assert against == pytest.approx(-there["clip_directional"], abs=1e-6)


def test_a_copy_moved_in_no_direction(clip: ClipMetric) -> None:
    found = clip.measure(picture(0), picture(0), RED, BLUE)
    assert found["clip_directional"] == 0.0 and found["clip_image"] == pytest.approx(1, abs=1e-9)
    assert clip.measure(picture(0), picture(1), RED, RED)["clip_directional"] == 0.0


def test_a_prompt_that_would_be_cut_is_refused(clip: ClipMetric) -> None:
    clip.check("a dog " * 9)  # 18 words between start and end
    with pytest.raises(AdapEditError, match="the prompt 'a dog a dog .* has 21 tokens, CLIP reads 20"):
        clip.check("a dog " * 9 + "a")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: (path / "preprocessor_config.json").unlink(),
        lambda path: (path / "model.safetensors").unlink(),
        lambda path: os.truncate(path / "model.safetensors", 5000),
        lambda path: (path / "config.json").write_text("{"),
    ],
)
def test_folders_that_are_no_clip_checkpoint(folder: Path, tmp_path: Path, spoil) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    spoil(copy)
    with pytest.raises(MetricError, match="give a folder that CLIPModel") as error:
        load_clip(copy)
    assert "\n" not in str(error.value)


def test_weights_that_are_missing_are_not_made_up(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    tensors = load_file(copy / "model.safetensors")
    save_file(
        {name: value for name, value in tensors.items() if name != "text_projection.weight"},
        copy / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(MetricError, match="lacks text_projection.weight"):
        load_clip(copy)


def test_names_that_are_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MetricError, match="no CLIP model at 'nowhere/nothing'"):
        load_clip("nowhere/nothing")


def test_weights_tell_checkpoints_apart(folder: Path, clip: ClipMetric) -> None:
    assert (
        load_clip(folder).about
        == clip.about
        == {"CLIP model": str(folder), "CLIP weights": clip.about["CLIP weights"]}
    )
    assert json.dumps(dict(clip.about)) and len(clip.about["CLIP weights"]) == 8


@pytest.mark.slow
def test_the_shape_of_vit_l_14(tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "large", VIT_L_14)
    metric, source, target = load_clip(folder), picture(0, 320, 256), picture(1, 320, 256)
    assert sum(weight.numel() for weight in metric._model.parameters()) > 400_000_000
    found = metric.measure(source, target, RED, BLUE)
    assert found == pytest.approx(plain_figures(folder, source, target, 224), abs=1e-2)
