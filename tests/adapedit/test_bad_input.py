"""What can't be used is said in one line with the mend, before a weight is read: by the command, as people meet it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from adapedit.checkpoints import read_part
from adapedit.cli.main import USER_ERROR, run
from tests.helpers.edits import SOURCE, TARGET
from tests.helpers.tiny_model import save_tiny_model


def _shown(at: Path, size: tuple[int, int], *, white: bool = True) -> str:
    mask = Image.new("L", size)
    mask.paste(255 * white, (0, 0, 4, 4))
    mask.save(at)
    return str(at)


def _other_family(folder: Path, pipeline: str) -> None:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))


def _half(folder: Path) -> None:
    (path,) = (folder / "unet").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(folder: Path, part: str, *args: Any, **options: Any) -> Any:
        return (
            read_part(folder, part, *args, **options)
            if "tokenizer" in part
            else pytest.fail(f"{part} was read")
        )

    for name in ("adapedit.loading.read_part", "adapedit.single_files.read_part"):
        monkeypatch.setattr(name, read)


def said_of(capsys: Any, *more: str) -> str:
    capsys.readouterr()  # of what a test has done before
    assert run(["edit", SOURCE, TARGET, "--steps", "1", "--out", "never", *more]) == USER_ERROR
    error: str = capsys.readouterr().err
    assert error.count("\n") == 1 and not Path("never").exists()
    return error


@pytest.mark.parametrize(
    ("size", "white", "said"),
    [
        ((20, 16), True, "mask.png has 20 x 16 pixels, the picture 16 x 16: give one of the picture's size"),
        ((16, 16), False, "mask.png is black all over, so nothing may change; paint white what may"),
    ],
)
def test_masks(folder, tmp_path, capsys, size, white, said):
    picture = _shown(tmp_path / "picture.png", (16, 16))
    mask = _shown(tmp_path / "mask.png", size, white=white)
    assert said in said_of(capsys, "--model", str(folder), "--image", picture, "--mask", mask)


@pytest.mark.parametrize(
    ("channels", "said"),
    [
        (9, "inpaints: its UNet takes 9 channels, a picture's and a mask's among them; give image and mask"),
        (8, "follows instructions: its UNet takes 8 channels, .*use method 'instruct-pix2pix' with image"),
    ],
)
def test_channels_that_are_not_given(tmp_path, capsys, channels, said):
    folder = save_tiny_model(tmp_path / "model", unet={"in_channels": channels})
    error = said_of(capsys, "--model", str(folder))
    for part in said.split(".*"):
        assert part in error


@pytest.mark.parametrize("pipeline", ["StableDiffusion3Pipeline", "FluxPipeline"])
def test_other_families(folder, capsys, pipeline):
    _other_family(folder, pipeline)
    error = said_of(capsys, "--model", str(folder))
    assert f"({pipeline}), which is not supported yet; give one of Stable Diffusion 1.x, 2.x or XL" in error


def test_half_a_download(folder, capsys):
    _half(folder)
    assert "is corrupt or cut short" in (error := said_of(capsys, "--model", str(folder)))
    assert "copy it again" in error


def test_a_pickle(folder, tmp_path, capsys):
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x02}.")
    error = said_of(capsys, "--model", str(tmp_path / "model.ckpt"), "--config", str(folder))
    assert "is a pickle" in error and "save_pretrained('folder') converts it" in error


def test_a_variant_that_is_not_there(folder, capsys):
    error = said_of(capsys, "--model", str(folder), "--weights-variant", "fp16")
    assert (
        "has no weights of variant 'fp16'; leave variant out, and give torch_dtype for a precision" in error
    )


def test_prompts(folder, capsys):
    long = ["--model", str(folder), "--negative", "a dog " * 20]
    assert "the negative prompt has 42 tokens, " in (error := said_of(capsys, *long))
    assert "shorten it by 22, or give max_embeddings_multiples=3" in error
