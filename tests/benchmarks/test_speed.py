"""The benchmarks of speed end to end, by a model of random weights: they compare before they time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from adapedit_engine.batch import Batch
from benchmarks import common, gpu, latency, runners, serving, steps
from benchmarks.baselines.edits import OtherWays


def run(script: ModuleType, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What it writes."""
    words = [script.__name__, "--quick", "--threads", "1", "--model", str(model), "--results", str(folder)]
    monkeypatch.setattr(sys, "argv", words)
    script.main()
    (written,) = folder.iterdir()
    found: dict[str, Any] = json.loads(written.read_text())
    assert found["versions"]["torch"] == torch.__version__ and set(found) >= {"machine", "commit", "dirty"}
    return found


def test_latency(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(latency, tmp_path / "results", tiny_folder, monkeypatch)
    assert set(found["parity"]) == {"pytorch", "onnxruntime", "diffusers", "eager controller"}
    assert max(found["parity"].values()) <= 1
    loops = found["loops"]
    for name in ("pytorch", "onnxruntime"):
        ratio = loops[f"{name}, edit"]["median_s"] / loops[f"{name}, plain"]["median_s"]
        assert found["ratios"][f"{name}: the edit's loop over the plain one"] == round(ratio, 3)


@pytest.mark.slow
def test_runners(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(runners, tmp_path / "results", tiny_folder, monkeypatch)["calls"]
    assert found.keys() == {"pytorch", "diffusers, no edit", *runners.WAYS}
    assert found["onnxruntime"]["loss"] < 1e-3 < found["onnxruntime int8"]["loss"] < 0.3
    assert found["openvino"]["most_grey_levels"] <= 1
    monkeypatch.setattr(runners, "CLOSE", 1e-3)
    with pytest.raises(
        SystemExit, match="parity: openvino bfloat16 is .* from PyTorch, wanted 0.001 at most"
    ):
        run(runners, tmp_path / "more", tiny_folder, monkeypatch)


def test_serving(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(serving, tmp_path / "results", tiny_folder, monkeypatch)
    rates = found["edits_per_s"]
    assert found["ratios"]["scheduler over one by one"] == round(rates["scheduler"] / rates["one by one"], 3)
    assert set(found["latency_s"]) == {"scheduler", "static"} and max(found["parity"].values()) <= 1


def test_steps(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(steps, tmp_path / "results", tiny_folder, monkeypatch)
    assert max(found["captured"].values()) < 1e-3 and found["steps"].keys() == {"2", "4", "8"}
    eight = found["steps"]["8"]
    assert eight["times"].keys() == eight["over plain"].keys() == {"plain", *steps.METHODS}
    assert found["edits"].keys() == steps.WAYS.keys() and found["throughput"]["edits_per_s"] > 0
    waited = found["arrivals"]["steps before it takes part"]
    assert (
        len(waited) == 2 and min(waited) >= 0
    )  # at most two on a device, whose steps take longer than the host


def test_no_step_is_timed_where_the_captured_one_does_other_things(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = Batch.latents

    def other(batch: Any, seat: Any) -> torch.Tensor:
        return latents(batch, seat) * (1.1 if batch.whole else 1)

    monkeypatch.setattr(Batch, "latents", other)
    with pytest.raises(SystemExit, match="captured and launched latents differ by .*: not timed"):
        run(steps, tmp_path / "results", tiny_folder, monkeypatch)


def test_nothing_is_timed_where_a_way_makes_other_pictures(
    pipe: Any, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = OtherWays.plain
    monkeypatch.setattr(OtherWays, "plain", lambda self, request: 1 - plain(self, request))
    with pytest.raises(SystemExit, match="not timed"):
        latency.parity({"pytorch": pipe}, 3)


def test_unrelated_edits_are_the_same_ones_every_time() -> None:
    assert common.unrelated(5, 16) == common.unrelated(5, 16)
    assert {edit.num_inference_steps for edit in common.unrelated(40, 16)} == set(common.lengths(16))


PASSES, FAILS, HANGS = (
    "print('well')",
    "raise SystemExit(3)",
    "import time; print('begun', flush=True); time.sleep(99)",
)


def test_a_part_that_fails_or_hangs_does_not_keep_the_rest_from_running(tmp_path: Path) -> None:
    wanted = [
        gpu.Part(name, seconds, (sys.executable, "-c", code))
        for name, seconds, code in (("hangs", 2, HANGS), ("fails", 60, FAILS), ("passes", 60, PASSES))
    ]
    found = gpu.run_all(wanted, tmp_path, float("inf"))
    assert [part["ended"] for part in found.values()] == ["cut", "with code 3", "well"]
    assert found["hangs"]["said"].startswith("begun") and found["passes"]["said"] == "well\n"
    assert json.loads((tmp_path / "gpu.json").read_text())["parts"] == found
    assert gpu.run_all(wanted, tmp_path, 0.0)["passes"] == {"ended": "not begun"}


def test_parts_are_there(tmp_path: Path) -> None:
    for part in gpu.parts(tmp_path, []):
        if part.name == "c-example":
            assert f"-S {common.ROOT} " in part.command[-1] and "TARGETS=90 " in part.command[-1]
            continue
        name = next(word for word in part.command if word.startswith(("benchmarks.", "tests/")))
        assert (
            common.ROOT / (name if name.startswith("tests/") else f"{name.replace('.', '/')}.py")
        ).exists()


def test_outcomes_of_tests_are_told_by_name() -> None:
    text = "a.py::one PASSED [1%]\na.py::two[x y] FAILED [2%]\na.py::three SKIPPED (no) [3%]\n"
    assert gpu.outcomes(text) == {"failed": 1, "passed": 1, "skipped": 1, "not passed": ["a.py::two[x y]"]}
