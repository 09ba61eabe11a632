"""Every command and snippet of the README and of docs/ works: it is run on the tiny model, or held to what there is."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from adapedit import AdapEditPipeline
from adapedit.cli import bundles, edits, service
from adapedit.cli.main import run
from benchmarks import gpu, http, kernels, latency, runners, serving
from benchmarks.quality.__main__ import app as quality
from tests.helpers.single_file import save_single_file
from tests.helpers.tiny_model import save_tiny_model, save_tiny_xl

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
COMMANDS = {command.__name__ for command in (*edits.COMMANDS, *bundles.COMMANDS, *service.COMMANDS)}
WITH_STEPS = {"edit", "sweep", "compare", "invert"}

NOT_RUN = {
    "make": "is what runs these tests, or takes minutes; its target has to be there",
    "source": "is for a terminal",
    "pip": "changes the environment",
    "pre-commit": "changes the clone",
    "python3 -m venv aiperf-env": "fetches hundreds of megabytes",
    "aiperf-env/bin/aiperf profile": "takes an environment of its own, and a server",
    "python -m benchmarks.latency": "takes minutes; its options have to be there",
    "python -m benchmarks.runners": "takes minutes",
    "python -m benchmarks.serving": "takes minutes",
    "python -m benchmarks.kernels": "needs a GPU",
    "python -m benchmarks.gpu": "needs a GPU",
    "python -m benchmarks.quality": "takes minutes to hours, or weights of metrics; its options have to be there",
    "python -m tests.kernels.mutation_check": "takes minutes",
    "python -m tests.mutants": "takes an hour",
    "adapedit serve --model": "runs until a signal",
    'adapedit edit "a red dog" "a blue dog" --server': "wants a server: it is run by test_api",
    "polygraphy": "takes onnx-graphsurgeon, and a minute",
    "adapedit build": "takes TensorRT, and a minute",
    "adapedit export builtin --out half": "takes as long as the export beside it, which is run",
}
"""Beginnings of commands, with the reason why they are not run."""

SNIPPETS_NOT_RUN = {"alexnet-owt-7be5be79.pth": "files of weights that are somewhere else"}
"""What is in a snippet, with the reason why it is not run."""


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of the fenced blocks that are shell or Python."""
    return re.findall(r"^```(bash|python)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.S | re.M)


def statements(text: str) -> Iterator[str]:
    """The commands of a block: comments gone, lines that go on joined, a here-document with its command."""
    for found in re.finditer(r"^.*<<'END'\n(?:.*\n)*?END$|^(?:.*\\\n)*.*$", text, re.M):
        command = (
            found[0] if "<<" in found[0] else re.sub(r"\s+#.*$|^#.*$", "", found[0].replace("\\\n", " "))
        )
        if command.strip():
            yield command.strip()


def inline(page: Path) -> list[str]:
    """Commands inside of sentences and tables."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    return re.findall(r"`((?:make|adapedit|python -m) [^`]+)`", text)


def reason(command: str) -> str | None:
    """Why a command is not run."""
    return next((why for start, why in NOT_RUN.items() if f"{command} ".startswith(f"{start} ")), None)


@pytest.fixture(scope="session")
def checkpoints(tiny_folder, tmp_path_factory) -> dict[str, Path]:
    """What pages call checkpoints, by the names that they have there."""
    folder = tmp_path_factory.mktemp("checkpoints")
    components = AdapEditPipeline.from_pretrained(tiny_folder).components
    return {
        "stable-diffusion": tiny_folder,
        "stable-diffusion-v1-4": tiny_folder,
        "dreamshaper.safetensors": save_single_file(components, folder / "one.safetensors"),
        "stable-diffusion-inpainting": save_tiny_model(folder / "inpainting", unet={"in_channels": 9}),
        "sdxl-turbo": save_tiny_xl(folder / "xl"),
    }


@pytest.fixture
def tiny_world(tiny_folder, checkpoints, tmp_path, monkeypatch) -> None:
    """The tiny model in place of any, few steps where none are named, and a folder to write in."""
    monkeypatch.setattr("adapedit.checkpoints.BUILTIN", tiny_folder)
    monkeypatch.setitem(AdapEditPipeline.__call__.__kwdefaults__, "num_inference_steps", 2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # As in an environment that is activated, which pages begin with.
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    for name, place in checkpoints.items():
        (tmp_path / name).symlink_to(place)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_says_works(page, tiny_world):
    run_all([block for block in blocks(page) if "bundle" not in block[1]], page.name)


@pytest.mark.slow
def test_what_the_guide_says_of_bundles_works(tiny_world):
    page = ROOT / "docs" / "guide.md"
    first = [block for block in blocks(page) if block[0] == "python"][:1]
    run_all([*first, *(block for block in blocks(page) if "bundle" in block[1])], page.name)


def run_all(wanted: list[tuple[str, str]], name: str) -> None:
    """Blocks of a page one after the other; later snippets know the names of earlier ones."""
    names: dict[str, object] = {}
    for language, text in wanted:
        if language == "bash":
            for command in statements(text):
                run_one(command)
        elif not any(sign in text for sign in SNIPPETS_NOT_RUN):
            exec(compile(text, name, "exec"), names)


def run_one(command: str) -> None:
    if reason(command) is not None:
        return
    words = shlex.split(command) if "<<" not in command else []
    if words[:1] != ["adapedit"]:
        subprocess.run(["bash", "-c", command], check=True)
        return
    steps = ["--steps", "2"] if words[1] in WITH_STEPS and "--steps" not in words else []
    steps = ["--check-steps", "1"] if words[1] == "export" else steps
    assert run([*words[1:], *steps]) == 0, command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_not_run_is_there(page, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    written = [
        command for language, text in blocks(page) if language == "bash" for command in statements(text)
    ]
    for command in [*inline(page), *written]:
        words = [word for word in command.split() if "=" not in word or word.startswith("-")]
        if words[0] == "make":
            assert all(re.search(rf"^{word}:", MAKEFILE, re.M) for word in words[1:]), command
        elif words[0] == "adapedit":
            assert words[1].startswith("-") or words[1] in COMMANDS, command
        elif words[:2] == ["python", "-m"]:
            said = help_of(words[2], words[3:4], monkeypatch, capsys)
            for option in filter(lambda word: word.startswith("--"), words[3:]):
                assert said is None or option.partition("=")[0] in said, command


def help_of(module: str, first: list[str], monkeypatch, capsys) -> str | None:
    """What a script says of its options, or None where it has none that could be asked for quickly."""
    if module == "benchmarks.quality":
        command: Any = get_command(quality)
        command = command.commands[first[0]] if first else command
        return " ".join(option for parameter in command.params for option in parameter.opts)
    scripts = {
        f"benchmarks.{script.__name__.rpartition('.')[2]}": script
        for script in (gpu, http, kernels, latency, runners, serving)
    }
    if module in scripts:
        monkeypatch.setattr("sys.argv", [module, "--help"])
        with pytest.raises(SystemExit):
            scripts[module].main()
        return capsys.readouterr().out
    assert find_spec(module) is not None, module
    return None


def test_reasons_are_of_commands_that_are_there():
    everything = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [start for start in NOT_RUN if start not in everything] == []
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130
