"""Every example of the API's pages is run: curl in bash, Python, and the `openai` package, against one server."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from adapedit.cli.main import run
from adapedit.http.settings import ModelSource
from tests.docs.test_commands import ROOT, blocks
from tests.helpers.service import Running, serving, settings_for

FOLDER = ROOT / "docs" / "api"
PAGES = sorted(FOLDER.glob("*.md"))
SAID = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def builtin(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    models = [ModelSource(name="builtin", source=str(tiny_folder), device="cpu")]
    with serving(settings_for(tiny_folder, tmp_path_factory.mktemp("api"), models=models)) as running:
        yield running


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_of_the_api_says_works(page: Path, builtin: Running, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (24, 24), (200, 80, 60)).save("dog.png")
    names: dict[str, object] = {}
    for language, text in blocks(page):
        text = text.replace(SAID, builtin.url)
        if language == "python":
            exec(compile(text, page.name, "exec"), names)
        elif shutil.which("curl") and shutil.which("jq"):
            subprocess.run(["bash", "-euo", "pipefail", "-c", text], check=True, stdout=subprocess.DEVNULL)


def test_each_page_shows_all_ways_and_each_route_has_one(builtin: Running):
    pages = {page.stem: page.read_text(encoding="utf-8") for page in PAGES if page.stem != "README"}
    for name, text in pages.items():
        assert "curl" in text and "```python" in text and ("from openai" in text or "openai" in text), name
    routes = {
        f"{verb.upper()} {path}"
        for path, verbs in builtin.client.get("/openapi.json").json()["paths"].items()
        for verb in verbs
    }
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`((?:GET|POST|DELETE) [^`]+)`", index.partition("## Keys")[0])) == routes
    for target in re.findall(r"\]\(([\w-]+\.md)\)", index):
        assert (FOLDER / target).is_file()


def test_every_error_of_the_table_is_one_that_is_given():
    table = (FOLDER / "README.md").read_text(encoding="utf-8").partition("## Errors")[2]
    codes = set(re.findall(r"`([a-z_]+)`", "".join(re.findall(r"^\| \d+ \|([^|]+)\|", table, re.M))))
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "adapedit" / "http").glob("*.py"))
    phrases = {
        "forbidden",
        "not_found",
        "request_timeout",
        "method_not_allowed",
        "unsupported_media_type",
        "internal_server_error",
    }
    assert {code for code in codes - phrases if f'"{code}"' not in source} == set()


def test_the_command_edits_on_the_server(builtin: Running, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^adapedit (edit .*--server.*)$", text, re.M)
    words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', command.replace(SAID, builtin.url))]
    assert run([*words, "--steps", "2"]) == 0
    assert (tmp_path / "out" / "remote" / "target.png").is_file()
