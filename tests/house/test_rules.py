"""House rules that a reader can't check by eye in every change: no pickles, no shell."""

from __future__ import annotations

import pytest

from tests.house.rules import (
    ROOMS,
    ROOT,
    name_violations,
    pickle_violations,
    python_files,
    shell_violations,
    size_violations,
)

FILES = [path for folder in ROOMS.values() for path in python_files(folder)]


@pytest.mark.parametrize("rule", [pickle_violations, shell_violations])
def test_no_file_breaks_the_rule(rule):
    found = [
        line for path in FILES for line in rule(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))
    ]
    assert not found, "\n".join(found)


# Kernels and what calls them have as many arguments as the operation; so have commands, a traced graph, and what
# mirrors diffusers' own call.
LARGE = (
    "kernels/",
    "adapedit/cli/",
    "adapedit/pipeline",
    "export/adapedit_export/graphs",
    "benchmarks/quality/__main__",
)


def test_functions_fit_a_screen():
    files = [path for path in FILES if "tests" not in path.parts]
    found = [
        line
        for path in files
        if not str(path.relative_to(ROOT)).startswith(LARGE)
        for line in size_violations(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))
    ]
    assert not found, "\n".join(found)


def test_no_module_is_named_as_another_beside_it():
    assert name_violations(FILES) == []


def test_the_checker_sees_a_long_function_and_a_wide_one():
    long = "def f():\n" + "    pass\n" * 60
    wide = "def f(a, b, c, d, e, f, g, h, *, i): ..."
    assert len(size_violations(long, "sample.py")) == len(size_violations(wide, "sample.py")) == 1
    assert name_violations([ROOT / "layout.py", ROOT / "layouts.py"])


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "import torch\nstate = torch.load('weights.pt', weights_only=True)",
        "from torch import load",
        "import numpy as np\nnp.load('a.npy', allow_pickle=True)",
    ],
)
def test_the_checker_sees_a_pickle(source):
    assert len(pickle_violations(source, "sample.py")) == 1


@pytest.mark.parametrize(
    "source", ["import os\nos.system('ls')", "import subprocess\nsubprocess.run('ls', shell=True)"]
)
def test_the_checker_sees_a_shell(source):
    assert len(shell_violations(source, "sample.py")) == 1


def test_the_checkers_let_plain_code_pass():
    source = (
        "from safetensors.torch import load_file\nimport numpy as np, subprocess\n"
        "np.load('a.npy', allow_pickle=False)\n"
        "subprocess.run(['ls'], shell=False)\nscheduler.load('torch.load')"
    )
    assert pickle_violations(source, "sample.py") == []
    assert shell_violations(source, "sample.py") == []
