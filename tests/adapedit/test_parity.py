"""Benchmarks hold their ways to each other in float32, and tell what half precision makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from adapedit import AdapEditPipeline
from benchmarks import common, neighbours, overhead, parity, scaling, throughput
from benchmarks.baselines.plain import plain_loop


@pytest.fixture(scope="module")
def pipes(pipe: AdapEditPipeline, tiny_folder: Path) -> dict[str, AdapEditPipeline]:
    half = AdapEditPipeline.from_pretrained(tiny_folder, torch_dtype=torch.bfloat16)
    return {"float32": pipe, "bfloat16": half}


def test_half_precision_is_told_and_not_gated(pipes: dict[str, AdapEditPipeline]):
    found = overhead.same_latents(pipes, 3)
    half = found.pop("in_bfloat16")
    assert set(found) == set(half) and max(found.values()) < 1e-4
    assert half["edit_to_eager"] > 5e-3  # what would not pass
    apart = {"float32": 1, "bfloat16": 9}
    told = parity.grey_levels(
        pipes, lambda pipe: apart["float32" if pipe is pipes["float32"] else "bfloat16"]
    )
    assert told == {"grey_levels": 1, "grey_levels_in_bfloat16": 9}


def test_float32_is_gated(pipes: dict[str, AdapEditPipeline], monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SystemExit, match="differ by 2 grey levels"):
        parity.grey_levels(pipes, lambda pipe: 2)
    plain = plain_loop
    monkeypatch.setattr(overhead, "plain_loop", lambda *given: plain(*given) + 1)
    with pytest.raises(SystemExit, match="parity: edit_to_eager is 1"):
        overhead.same_latents(pipes, 3)


def test_half_precision_is_timed(tiny_folder: Path, tmp_path: Path, monkeypatch, capsys):
    given = ["--quick", "--dtype", "bfloat16", "--model", str(tiny_folder), "--results", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["overhead", *given])
    overhead.main()
    (path,) = tmp_path.iterdir()
    data = json.loads(path.read_text())
    assert "in_bfloat16" in data["parity"] and data["times"]


def test_pictures_of_edits_together_are_compared(pipe: AdapEditPipeline):
    assert scaling.apart(pipe, scaling.sweep(2, 2)) <= 1
    assert throughput.apart(pipe, common.unrelated(2, 2), 8) <= 1


def test_float32_is_no_tf32(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.backends.cuda.matmul.allow_tf32 = True
    options = SimpleNamespace(model=tiny_folder, device="cpu", dtype="bfloat16", threads=None)
    assert common.pipeline(options).model.runner.dtype == torch.bfloat16
    assert common.pipeline(options, "float32").model.runner.dtype == torch.float32
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def test_neighbours_are_written_before_they_are_gated(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(neighbours, "apart", lambda options, dtype: {"largest": 3})
    monkeypatch.setattr("sys.argv", ["neighbours", "--results", str(tmp_path)])
    with pytest.raises(SystemExit, match="differ by 3 grey levels"):
        neighbours.main()
    assert json.loads((tmp_path / "neighbours.json").read_text())["dtypes"]["float32"] == {"largest": 3}
