"""Runs the checks of the Triton kernels under Triton's interpreter, each file in a process of its own.

The interpreter must be asked for before Triton is first imported, and diffusers imports it; so a process that has
run other tests can't.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

FOLDER = Path(__file__).parent / "interpreted"


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("check_*.py")))
def test_kernels_agree_with_their_references(name: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", "python_files=check_*.py"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*command, str(FOLDER / name)], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    assert " passed" in run.stdout or "100%" in run.stdout, run.stdout[-2000:]
