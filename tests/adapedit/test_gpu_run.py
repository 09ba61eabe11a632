"""The run of all that needs a GPU: parts that fail, hang or find no time left, and what is written of them."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import common, gpu

CRASH = """
print("a/test_b.py::test_c[x, y] PASSED [ 10%]")
print("a/test_b.py::test_d FAILED [ 20%]")
print("a/test_b.py::test_e SKIPPED (needs a CUDA device) [ 30%]", flush=True)
raise SystemExit(139)
"""


def part(name: str, code: str, *more: str, seconds: float = 60) -> gpu.Part:
    return gpu.Part(name, seconds, (sys.executable, "-c", code, *more))


def runs(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in "ZX"


def test_one_part_does_not_keep_the_next_from_running(tmp_path: Path, capsys):
    hangs = (
        "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    )
    wanted = [
        part("tests", CRASH, "pytest"),
        part("hangs", hangs, seconds=1.0),
        part("works", "import os; print(os.environ['PYTHONPATH'])"),
    ]
    found = gpu.run_all(wanted, tmp_path / "new", 100)
    assert [each["ended"] for each in found.values()] == ["with code 139", "cut", "well"]
    assert found["tests"]["tests"] == {
        "failed": 1, "passed": 1, "skipped": 1, "not passed": ["a/test_b.py::test_d"],
    }  # fmt: skip
    child = int(found["hangs"]["said"].split()[0])
    deadline = time.monotonic() + 5
    while runs(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not runs(child)
    assert found["works"]["said"].startswith(os.pathsep.join(map(str, gpu.ROOMS)))
    assert json.loads((tmp_path / "new" / "gpu.json").read_text())["parts"] == found


def test_what_finds_no_time_is_not_begun(tmp_path: Path, capsys):
    found = gpu.run_all([part("late", "raise SystemExit(1)")], tmp_path, gpu.GRACE)
    assert found == {"late": {"ended": "not begun"}}


def test_parts_are_there_and_asked_for_by_name(tmp_path: Path, monkeypatch, capsys):
    for path in gpu.TESTS.values():
        assert (common.ROOT / path).exists()
    wanted = gpu.parts(tmp_path, ["--quick"])
    for each in wanted[len(gpu.TESTS) :]:
        assert each.command[2] == f"benchmarks.{each.name}" and "--quick" in each.command
        assert (common.ROOT / "benchmarks" / f"{each.name}.py").exists()
    ran: list[str] = []

    def cut(part: gpu.Part, seconds: float) -> dict[str, str]:
        ran.append(part.name)
        return {"ended": "cut"}

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(gpu, "run", cut)
    assert gpu.main(["--only", "trace,latency", "--results", str(tmp_path)]) == 1
    assert ran == ["trace", "latency"]
    with pytest.raises(SystemExit):
        gpu.main(["--only", "nonsense"])


def test_results_are_written_where_there_is_no_git(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    options = SimpleNamespace(results=tmp_path, device="cpu", quick=False)
    part = common.write("x", options, {"value": 1}, whole=False)
    assert part == tmp_path / "x.part.json" and json.loads(part.read_text())["value"] == 1
    whole = common.write("x", options, {"value": 2})
    assert json.loads(whole.read_text())["commit"] == "" and not part.exists()
