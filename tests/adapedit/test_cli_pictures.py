"""Real pictures on the command line: edited, compared, swept, inverted, in a batch; and refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adapedit.cli.main import run

SOURCE, TARGET = "a red dog standing on the grass", "a red dog sitting on the grass"


@pytest.fixture
def dog(tmp_path: Path) -> str:
    path = tmp_path / "dog.png"
    values = np.random.default_rng(0).integers(0, 256, (24, 40, 4), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return str(path)


def call(*arguments: Any) -> int:
    return run([str(argument) for argument in arguments])


def test_edit_says_what_was_done_to_the_picture(
    tiny_folder: Path, tmp_path: Path, dog: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ("--model", tiny_folder, "--steps", 3, "--device", "cpu", "--out", out, "--image", dog)
    knobs = ("--inversion", "edit-friendly", "--inversion-set", "skip=0.4", "--fit", "pad")
    assert call("edit", SOURCE, TARGET, *options, *knobs, "--json") == 0
    printed = capsys.readouterr()
    assert "transparent parts laid on white; white bars around 40 x 24 pixels; comes back at" in printed.err
    saved = json.loads((out / "edit.json").read_text())
    assert json.loads(printed.out)["reconstruction_psnr"] == saved["reconstruction_psnr"]
    assert saved["request"]["image"]["file"] == dog and saved["request"]["image"]["fit"] == "pad"
    assert saved["request"]["inversion"] == {"name": "edit-friendly", "eta": 1.0, "skip": 0.4}
    assert saved["input"]["size"] == [40, 24]


def test_compare_and_sweep_take_one(tiny_folder: Path, tmp_path: Path, dog: str) -> None:
    options = (
        "--model",
        tiny_folder,
        "--steps",
        3,
        "--device",
        "cpu",
        "--out",
        tmp_path / "out",
        "--image",
        dog,
    )
    assert call("compare", SOURCE, TARGET, "--methods", "plain,sdedit", *options) == 0
    assert call("sweep", SOURCE, TARGET, "--knob", "seed", "--values", "1,2", *options) == 0
    edits = json.loads((tmp_path / "out" / "compare.json").read_text())["edits"]
    assert [edit["request"]["inversion"] for edit in edits] == [{"name": "direct", "targets": 0.0}, None]


def test_invert_tabulates_the_vae_and_every_inversion(
    tiny_folder: Path, tmp_path: Path, dog: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ("--model", tiny_folder, "--steps", 3, "--device", "cpu", "--out", out)
    names = ("--inversions", "ddim,direct,edit-friendly")
    assert call("invert", "--image", dog, "--prompt", SOURCE, *names, *options, "--json") == 0
    rows = {row["inversion"]: row for row in json.loads(capsys.readouterr().out)["reconstructions"]}
    assert list(rows) == ["VAE alone", "ddim", "direct", "edit-friendly"]
    assert rows["direct"]["psnr"] == rows["VAE alone"]["psnr"] and rows["direct"]["latent_rmse"] == 0
    assert rows["edit-friendly"]["latent_rmse"] < 1e-3 < rows["ddim"]["latent_rmse"]
    assert (out / "invert.png").is_file() and json.loads((out / "invert.json").read_text())[
        "prompt"
    ] == SOURCE
    assert call("invert", "--image", dog, "--prompt", SOURCE, "--inversions", "ddim", *options) == 0
    assert "PSNR" in capsys.readouterr().out


def test_batch_lines_may_name_a_picture(tiny_folder: Path, tmp_path: Path, dog: str) -> None:
    shared = {"source_prompt": SOURCE, "target_prompt": TARGET, "num_inference_steps": 3}
    lines = [
        {**shared, "id": "direct", "image": dog, "inversion": "direct"},
        {**shared, "id": "knobs", "image": dog, "inversion": {"name": "edit-friendly", "skip": 0.5}},
        {**shared, "id": "gone", "image": str(tmp_path / "gone.png")},
    ]
    requests = tmp_path / "requests.jsonl"
    requests.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ("--model", tiny_folder, "--device", "cpu", "--out", tmp_path / "out")
    assert call("batch", requests, *options) == 1
    failures = (tmp_path / "out" / "failures.jsonl").read_text()
    assert "gone" in failures and "is not there" in failures and failures.count("\n") == 1
    assert (tmp_path / "out" / "knobs" / "edit.json").is_file()

    before = (tmp_path / "out" / "direct" / "edit.json").stat().st_mtime_ns
    assert call("batch", requests, *options) == 1
    assert (tmp_path / "out" / "direct" / "edit.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--inversion", "direct"), "--inversion wants a picture; give one with --image"),
        (("--image", "none.png"), "image none.png is not there"),
        (("--image", "x", "--inversion", "back"), "there is no inversion 'back'; use one of: ddim"),
        (("--image", "x", "--inversion-set", "skip=1"), "inversion direct has no knob 'skip'"),
        (
            ("--image", "x", "--method", "sdedit", "--inversion", "direct"),
            "sdedit edits a picture without inverting",
        ),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...],
    message: str,
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = ("--model", tiny_folder, "--device", "cpu", "--out", tmp_path / "out")
    assert call("edit", SOURCE, TARGET, *arguments, *out) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
