"""What calls take is measured once and kept, for the machine and the model that it was measured on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from adapedit import AdapEditError, AdapEditPipeline
from adapedit.http.calibration import calibrate
from adapedit.http.settings import Settings
from adapedit_engine.memory import CallTable
from tests.helpers.service import serving, settings_for


@pytest.fixture
def on_cuda(pipe: AdapEditPipeline, monkeypatch: pytest.MonkeyPatch):
    """A model that says it is on CUDA, whose calls take a thousand bytes a row."""
    monkeypatch.setattr(type(pipe.model), "device", torch.device("cuda:0"))

    def measure(runner, *, size, tokens):
        return CallTable({rows: 1000 * rows for rows in (2, 4, 8)}, size)

    monkeypatch.setattr("adapedit.http.calibration.measure_call_bytes", measure)
    return pipe.model


def test_what_was_measured_is_found_again(on_cuda, tmp_path: Path):
    assert calibrate(on_cuda, tmp_path, "m", anew=False) is None
    made = calibrate(on_cuda, tmp_path, "m", anew=True)
    found = calibrate(on_cuda, tmp_path, "m", anew=False)
    assert made is not None and found is not None
    assert made.measured == found.measured == {2: 2000, 4: 4000, 8: 8000}
    assert found(4, (8, 8)) == 4000 and found(16, (8, 8)) == 16000
    assert [path.name for path in tmp_path.iterdir()] == ["calibration-m.json"]


def test_of_another_machine_it_does_not_hold(on_cuda, tmp_path: Path):
    calibrate(on_cuda, tmp_path, "m", anew=True)
    file = tmp_path / "calibration-m.json"
    kept = json.loads(file.read_text())
    file.write_text(json.dumps({**kept, "made_with": {"device": "cuda:7"}}))
    assert calibrate(on_cuda, tmp_path, "m", anew=False) is None
    for wrong in ("{", "[]", '{"made_with": 1}'):
        file.write_text(wrong)
        with pytest.raises(AdapEditError, match="measure again by --calibrate"):
            calibrate(on_cuda, tmp_path, "m", anew=False)


def test_where_nothing_can_be_measured_it_is_said(pipe: AdapEditPipeline, tiny_folder: Path, tmp_path: Path):
    with pytest.raises(AdapEditError, match="model m runs on cpu; leave it out"):
        calibrate(pipe.model, tmp_path, "m", anew=True)
    with pytest.raises(AdapEditError, match="give --budget"):
        Settings.read(None, {"calibrate": True})
    settings = settings_for(tiny_folder, tmp_path, calibrate=True, budget="1GiB")
    with serving(settings, ready=False) as running:
        assert not running.jobs.lanes["tiny"].loaded()
        assert "runs on cpu" in running.jobs.lanes["tiny"].state


def test_a_budget_of_measured_bytes_admits_what_fits(tiny_folder: Path, tmp_path: Path, monkeypatch):
    seen = SimpleNamespace(calls=0)

    def table(*_, **__):
        def needed(rows, size):
            seen.calls += 1
            return 2**20 * rows

        return needed

    monkeypatch.setattr("adapedit.http.lane.calibrate", table)
    with serving(settings_for(tiny_folder, tmp_path, budget="8MiB")) as running:
        ids = [running.edit(num_inference_steps=8, seed=seed).json()["id"] for seed in range(4)]
        assert {running.ended(id)["status"] for id in ids} == {"completed"}
        stats = running.jobs.lanes["tiny"].counts[1].scheduler
    assert seen.calls and 0 < stats.max_bytes <= 8 * 2**20 and stats.max_rows == 4
