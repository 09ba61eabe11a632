"""Every extra can be installed with the versions of constraints.txt, and none installs two that spoil each other."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PINNED = set(re.findall(r"^[\w-]+(?=[=>])", (ROOT / "constraints.txt").read_text(), re.M))
WANTED = {
    "bench": {"matplotlib", "scipy"},
    "dev": {"onnxruntime", "openvino", "polygraphy", "pytest", "uv"},
    "gpu": {"onnxruntime-gpu", "polygraphy", "triton"},
    "onnx": {"onnx", "onnxruntime", "onnxscript"},
    "openvino": {"onnxruntime", "openvino"},
    "traces": {"fastapi", "opentelemetry-sdk"},
    "serve": {"fastapi", "httpx", "pydantic-settings", "uvicorn"},
    # Its libraries come in a package that is built from source to tell its version.
    "tensorrt": {"onnxruntime", "polygraphy", "tensorrt"},
    "tensorrt-rtx": {"onnxruntime", "polygraphy", "tensorrt-rtx-cu13-bindings"},
}


def declared() -> dict[str, str]:
    """Names of the extras in pyproject.toml, each with the text of its list."""
    text = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    return dict(re.findall(r"^([a-z-]+) = \[(.*?)\]$", text.partition("\n[project.")[0], re.M | re.S))


def test_each_extra_is_known_and_no_all_is_among_them():
    assert set(declared()) == set(WANTED)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("uv") is None, reason="wants uv")
@pytest.mark.parametrize("extra", WANTED)
def test_an_extra_resolves(extra):
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--extra", extra, "--quiet"]
    command += [
        "--constraints",
        "constraints.txt",
        "--python-version",
        "3.11",
        "--no-annotate",
        "--no-header",
    ]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    if "client error (Connect)" in found.stderr or "dns error" in found.stderr:
        pytest.skip("no registry can be reached")
    assert found.returncode == 0, found.stderr
    names = {line.partition("==")[0] for line in found.stdout.splitlines()}
    assert names >= WANTED[extra]
    assert not names >= {"onnxruntime", "onnxruntime-gpu"}
    ours = {name for name in names if not name.startswith(("nvidia-", "cuda-", "tensorrt"))}
    assert ours - PINNED - {"setuptools"} == set(), "not in constraints.txt"
