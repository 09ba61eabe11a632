"""`adapedit eval pairs` from end to end with models of random weights, and what it says of mistakes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from adapedit.cli.entry import run as run_command
from benchmarks.quality.metrics import load_clip
from benchmarks.quality.lpips import load_lpips
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


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def written(path: Path, *lines: Any) -> str:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def command(models: dict[str, str], pairs: str, out: Path, *more: str) -> list[str]:
    options = [text for option in models.items() for text in option]
    fixed = ["--methods", ",".join(METHODS), "--steps", "2", "--device", "cpu", "--out", str(out)]
    return ["eval", "pairs", "--pairs", pairs, *options, *fixed, *more]


def test_it_scores_a_file_of_pairs(
    models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run_command(command(models, written(tmp_path / "pairs.jsonl", *LINES), out)) == 0
    said = capsys.readouterr().out
    assert "2 of 2 pairs" in said and "LPIPS ↓" in said and all(method in said for method in METHODS)
    report = json.loads((out / "pairs.json").read_text())
    assert report["columns"] == ["lpips", "clip_score", "clip_directional", "clip_image"]
    scores = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()[1:]]
    assert len(scores) == 6 and (out / "pairs.html").exists()
    # What is written is what the metrics say of the pictures that were kept.
    clip, lpips, score = load_clip(models["--clip-model"]), load_lpips(models["--lpips"]), scores[-1]
    source, target = (
        Image.open((out / score["picture"]).with_name(name))
        for name in ("source.png", Path(score["picture"]).name)
    )
    prompts = LINES[1]["input"], LINES[1]["output"]
    wanted = lpips.measure(source, target, *prompts) | clip.measure(source, target, *prompts)
    assert score["figures"] == pytest.approx(wanted, abs=1e-5) and score["name"] == "00002"
    for method in METHODS:
        own = [score["figures"]["lpips"] for score in scores if score["variant"] == method]
        assert report["means"][method]["lpips"]["value"] == pytest.approx(sum(own) / 2, abs=1e-6)


def test_broken_lines_show_in_the_exit_code(
    models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = written(tmp_path / "pairs.jsonl", "{", *LINES)
    assert run_command(command(models, pairs, tmp_path, "--metrics", "lpips", "--json", "--limit", "2")) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["lines"], report["scored"], report["columns"]) == (2, 1, ["lpips"])
    assert [failure["line"] for failure in report["failures"]] == [1]
    assert json.loads((tmp_path / "failures.jsonl").read_text())["line"] == 1


def test_methods_that_nobody_named_and_that_want_a_checkpoint_are_left_out(
    models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(models, written(tmp_path / "p", LINES[0]), tmp_path, "--metrics", "lpips", "--json")
    place = arguments.index("--methods")
    assert run_command(arguments[:place] + arguments[place + 2 :]) == 0
    means = json.loads(capsys.readouterr().out)["means"]
    assert {*METHODS, "prompt-to-prompt", "masactrl"} <= set(means) and "instruct-pix2pix" not in means
    assert run_command([*arguments, "--methods", "sdedit,instruct-pix2pix"]) == 2
    assert "by instruct-pix2pix; leave it out with --methods" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pairs"], "wants a file of them: --pairs FILE.jsonl"),
        (["scenes", "--pairs", "p"], "--pairs belongs to the suite pairs"),
        (["knobs", "--clip-model", "c"], "--clip-model belongs to the suite pairs"),
        (
            ["pairs", "--pairs", "{pairs}"],
            "--clip-model FOLDER or a hub name, for example openai/clip-vit-large-patch14",
        ),
        (["pairs", "--pairs", "{pairs}", "--metrics", "fid"], "--metrics 'fid' is none that there are"),
        (["pairs", "--pairs", "{pairs}", "--metrics", ","], "use clip, lpips or clip,lpips"),
        (["pairs", "--pairs", "{pairs}", "--half", "test"], "has no halves"),
        (["pairs", "--pairs", "{pairs}", "--kinds", "pose"], "leave it out of pairs"),
        (["inversion", "--kinds", "pose"], "leave it out of inversion"),
        (["pairs", "--pairs", "{pairs}", "--name", "mine"], "leave it out of pairs"),
        (["scenes", "--name", "../mine"], "give letters, digits and hyphens"),
        (["scenes", "--kinds", "pose,mood"], "there is no kind of edit 'mood'"),
        (["pairs", "--pairs", "{pairs}", "--methods", "p2p"], "no method 'p2p'"),
        (["pairs", "--pairs", "nowhere.jsonl", "--metrics", "lpips"], "nowhere.jsonl can't be read"),
        (
            ["pairs", "--pairs", "{pairs}", "--clip-model", "nowhere", "--metrics", "clip"],
            "no CLIP model at 'nowhere'",
        ),
        (
            ["pairs", "--pairs", "{pairs}", "--metrics", "lpips", "--lpips", "x.pth"],
            "x.pth is no safetensors file",
        ),
    ],
)
def test_mistakes_are_one_line_and_come_before_any_work(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = written(tmp_path / "pairs.jsonl", *LINES)
    out = tmp_path / "out"
    given = [argument.replace("{pairs}", pairs) for argument in arguments]
    assert run_command(["eval", *given, "--model", "nowhere", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not out.exists()


@pytest.mark.slow
def test_a_killed_process_is_gone_on_from(models: dict[str, str], tmp_path: Path) -> None:
    poses = ("sitting", "jumping", "riding", "walking")
    lines = [{**LINES[0], "target_prompt": f"a red dog {pose} on the grass"} for pose in poses]
    arguments = command(models, written(tmp_path / "p", *lines), tmp_path / "out", "--batch", "1")
    code = [sys.executable, "-c", "import sys; from adapedit.cli.entry import main; main(sys.argv[1:])"]
    scores = tmp_path / "out" / "scores.jsonl"
    process = subprocess.Popen([*code, *arguments], stdout=subprocess.DEVNULL)
    while process.poll() is None and not (scores.exists() and len(scores.read_bytes().splitlines()) > 3):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = scores.read_bytes()
    assert before.count(b"\n") >= 4
    assert subprocess.run([*code, *arguments], stdout=subprocess.DEVNULL).returncode == 0
    after = scores.read_bytes()
    assert after.startswith(before[: before.rfind(b"\n") + 1]) and len(after.splitlines()) == 1 + 12
    assert json.loads((tmp_path / "out" / "pairs.json").read_text())["scored"] == 4
