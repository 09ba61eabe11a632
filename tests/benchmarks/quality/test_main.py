"""`python -m benchmarks.quality` from end to end with models of random weights, and what it says of mistakes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from benchmarks.common import ROOT
from benchmarks.quality import __main__ as command
from benchmarks.quality import run as runs
from benchmarks.quality.lpips import load_lpips
from benchmarks.quality.metrics import load_clip
from tests.benchmarks.quality.fake_editor import DrawingEditor
from tests.helpers.lpips_weights import published
from tests.helpers.tiny_clip import save_clip
from tests.helpers.tiny_model import save_tiny_model

LINES = [
    {"source_prompt": "a red dog standing on the grass", "target_prompt": "a red dog sitting on the grass"},
    {"input": "a cat in the snow", "edit": "make it a dog", "output": "a dog in the snow"},
]
METHODS = ("adapedit", "sdedit", "plain")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    save_file(published("alex"), folder / "lpips.safetensors")
    return {
        "--model": str(save_tiny_model(folder / "model", unet={"sample_size": 16})),
        "--clip-model": str(save_clip(folder / "clip")),
        "--lpips": str(folder / "lpips.safetensors"),
    }


def written(path: Path, *lines: Any) -> str:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def arguments_of(models: dict[str, str], file: str, out: Path) -> list[str]:
    options = [text for option in models.items() for text in option]
    return ["pairs", file, *options, "--only", ",".join(METHODS), "--steps", "2", "--out", str(out)]


def test_a_study_runs_and_says_what_came_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = DrawingEditor()
    monkeypatch.setattr(command, "load_pipeline", lambda runtime: editor)
    monkeypatch.setattr(runs, "load_reader", lambda: editor.reader)
    arguments = ["scenes", "--only", "adapedit,plain", "--limit", "3", "--half", "test", "--steps", "9"]
    arguments += ["--set", "adapedit.lambda_tau=0.5", "--out", str(tmp_path)]
    done = CliRunner().invoke(command.app, arguments)
    assert done.exit_code == 0 and "3 of 3 edits" in done.output
    report = json.loads((tmp_path / "scenes.json").read_text())
    assert report["about"]["num_inference_steps"] == 9 and report["settings"]["adapedit"]["lambda_tau"] == 0.5
    before = (tmp_path / "scenes.json").read_bytes()
    assert CliRunner().invoke(command.app, [*arguments, "--kinds", "pose", "--name", "mine"]).exit_code == 0
    assert json.loads((tmp_path / "mine.json").read_text())["study"] == "mine"
    assert (tmp_path / "mine.html").exists() and (tmp_path / "scenes.json").read_bytes() == before


def test_it_scores_a_file_of_pairs(models: dict[str, str], tmp_path: Path) -> None:
    out, file = tmp_path / "out", written(tmp_path / "pairs.jsonl", *LINES)
    done = CliRunner().invoke(command.app, arguments_of(models, file, out))
    assert done.exit_code == 0 and "2 of 2 edits" in done.output and all(m in done.output for m in METHODS)
    report = json.loads((out / "pairs.json").read_text())
    assert report["columns"] == ["lpips", "clip_score", "clip_directional", "clip_image"]
    scores = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()[1:]]
    assert len(scores) == 6 and (out / "pairs.html").exists()
    # What is written is what the metrics say of the pictures that were kept.
    clip, lpips, score = load_clip(models["--clip-model"]), load_lpips(models["--lpips"]), scores[-1]
    (edited,) = (out / "pictures").glob(f"00002-*/plain-{score['settings']}.png")
    pictures = Image.open(edited.with_name("source.png")), Image.open(edited)
    prompts = LINES[1]["input"], LINES[1]["output"]
    wanted = lpips.measure(*pictures, *prompts) | clip.measure(*pictures, *prompts)
    assert score["figures"] == pytest.approx(wanted, abs=1e-5) and score["name"] == "00002"
    for method in METHODS:
        own = [found["figures"]["lpips"] for found in scores if found["variant"] == method]
        mean = report["groups"]["all"]["means"][method]["lpips"]["value"]
        assert mean == pytest.approx(sum(own) / 2, abs=1e-6)


def test_broken_lines_show_in_the_exit_code(models: dict[str, str], tmp_path: Path) -> None:
    file = written(tmp_path / "pairs.jsonl", "{", *LINES)
    del (only_lpips := dict(models))["--clip-model"]
    done = CliRunner().invoke(command.app, [*arguments_of(only_lpips, file, tmp_path), "--limit", "2"])
    report = json.loads((tmp_path / "pairs.json").read_text())
    assert done.exit_code == 1 and (report["cases"], report["usable"], report["columns"]) == (2, 1, ["lpips"])
    assert [failure["line"] for failure in report["failures"]] == [1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scenes", "--only", "p2p"], "p2p"),
        (["scenes", "--set", "lambda_tau=1"], "write --set METHOD.KNOB=VALUE"),
        (["scenes", "--set", "adapedit.lambda_t=1"], "lambda_t"),
        (["scenes", "--half", "third"], "wanted development or test"),
        (["scenes", "--kinds", "pose,mood"], "there is no kind of edit 'mood'"),
        (["knobs", "--only", "dps"], "the study knobs has no 'dps'"),
        (["pairs", "{pairs}"], "give --clip-model, --lpips or both"),
        (["pairs", "nowhere.jsonl"], "nowhere.jsonl can't be read"),
        (["pairs", "{pairs}", "--lpips", "x.pth"], "x.pth is no safetensors file"),
    ],
)
def test_mistakes_are_one_line_and_come_before_any_work(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = written(tmp_path / "pairs.jsonl", *LINES), tmp_path / "out"
    given = [argument.replace("{pairs}", file) for argument in arguments]
    monkeypatch.setattr("sys.argv", ["quality", *given, "--model", "nowhere", "--out", str(out)])
    with pytest.raises(SystemExit, match=message) as leaving:
        command.main()
    assert "\n" not in str(leaving.value) and not out.exists()


@pytest.mark.slow
def test_a_killed_process_is_gone_on_from(models: dict[str, str], tmp_path: Path) -> None:
    poses = ("sitting", "jumping", "riding", "walking")
    lines = [{**LINES[0], "target_prompt": f"a red dog {pose} on the grass"} for pose in poses]
    given = [*arguments_of(models, written(tmp_path / "p", *lines), tmp_path / "out"), "--batch", "1"]
    call, scores = [sys.executable, "-m", "benchmarks.quality", *given], tmp_path / "out" / "scores.jsonl"
    process = subprocess.Popen(call, stdout=subprocess.DEVNULL, cwd=ROOT)
    while process.poll() is None and not (scores.exists() and len(scores.read_bytes().splitlines()) > 3):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = scores.read_bytes()
    assert before.count(b"\n") >= 4
    assert subprocess.run(call, stdout=subprocess.DEVNULL, cwd=ROOT).returncode == 0
    after = scores.read_bytes()
    assert after.startswith(before[: before.rfind(b"\n") + 1]) and len(after.splitlines()) == 1 + 12
    assert json.loads((tmp_path / "out" / "pairs.json").read_text())["usable"] == 4
