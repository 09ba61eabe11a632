"""Imports point one way, and ``import adapedit`` is light."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.house.rules import ROOMS, ROOT, import_violations, python_files


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_left(room):
    files = python_files(ROOMS[room])
    found = [
        line
        for path in files
        for line in import_violations(room, path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "room", ["adapedit_kernels", "adapedit_engine", "adapedit_export", "adapedit", "tests"]
)
def test_every_room_has_files_to_read(room):
    # A folder that was moved would pass the test above without having been read.
    assert (ROOT / ROOMS[room] / "__init__.py").is_file()


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("adapedit_kernels", "import adapedit_engine"),
        ("adapedit_kernels", "from diffusers import UNet2DConditionModel"),
        ("adapedit_engine", "from adapedit.prompts.alignment import align"),
        ("adapedit_engine", "import torch, adapedit_export.onnx as onnx"),
        ("adapedit_engine", "def f():\n    import adapedit"),
        ("adapedit_engine", "if TYPE_CHECKING:\n    from adapedit_export import graph"),
        ("adapedit_export", "from importlib import import_module\nimport_module('adapedit.pipeline')"),
        ("adapedit_export", "__import__('adapedit')"),
        ("adapedit", "from benchmarks.edit import run"),
        ("adapedit", "import onnxruntime as ort"),
        ("benchmarks", "from tests.helpers import tokenizers"),
    ],
)
def test_the_checker_sees_a_wrong_import(room, source):
    assert len(import_violations(room, source, "sample.py")) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("adapedit_kernels", "import torch\nfrom adapedit_kernels.errors import AdapEditError"),
        (
            "adapedit_engine",
            "from adapedit_kernels import edited_attention\nfrom . import loop\nfrom .. import x",
        ),
        ("adapedit", "import adapedit_kernels, adapedit_engine, adapedit_export, adapedit.request"),
        ("adapedit", "import adapedition"),
        ("tests", "import benchmarks.edit, adapedit, adapedit_kernels, triton"),
        ("adapedit_engine", "# import adapedit\nname = 'import adapedit'"),
    ],
)
def test_the_checker_lets_a_right_import_pass(room, source):
    assert import_violations(room, source, "sample.py") == []


def test_import_adapedit_does_not_import_torch():
    heavy = {"torch", "numpy", "diffusers", "transformers", "pydantic"}
    code = f"import sys, adapedit; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_every_public_name_of_adapedit_resolves():
    code = (
        "import adapedit as a; [getattr(a, name) for name in a.__all__]; print(set(a.__all__) <= set(dir(a)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"


def test_an_unknown_name_of_adapedit_is_an_attribute_error():
    import adapedit

    with pytest.raises(AttributeError, match="no attribute 'Pipeline'"):
        _ = adapedit.Pipeline
