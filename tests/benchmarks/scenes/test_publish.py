"""What is published: a model folder that loads, with the knobs that were found for the one before it."""

from __future__ import annotations

import json

import pytest

from adapedit.configs import FACTS_FILE
from adapedit.loading import load_model
from benchmarks.scenes import publish as stage
from tests.helpers.tiny_model import save_tiny_model


def test_a_model_is_replaced_and_its_knobs_stay(tmp_path):
    trained, out = save_tiny_model(tmp_path / "trained"), tmp_path / "model"
    assert stage.publish(trained, out, guidance_scale=3.0) > 0
    assert load_model(out).facts.defaults == {}
    facts = json.loads((out / FACTS_FILE).read_text())
    facts["defaults"] = {"adapedit": {"lambda_spatial": 4.0}}
    (out / FACTS_FILE).write_text(json.dumps(facts))
    stage.publish(trained, out)
    found = load_model(out).facts
    assert found.defaults == facts["defaults"]
    assert found.guidance_scale == 2.0


def test_a_model_that_is_too_large_replaces_nothing(tmp_path, monkeypatch):
    trained, out = save_tiny_model(tmp_path / "trained"), tmp_path / "model"
    stage.publish(trained, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr(stage, "LIMIT", 1000)
    with pytest.raises(ValueError, match="are wanted"):
        stage.publish(trained, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
