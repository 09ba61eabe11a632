"""Alignments, models, health, metrics, and models loaded anew."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from adapedit.http.settings import ModelSource
from adapedit.http.telemetry import Lines
from tests.helpers.service import Running, serving, settings_for


def value(service: Running, line: str) -> float:
    """Of a line of /metrics; 0 where there is none."""
    found = [text for text in service.client.get("/metrics").text.splitlines() if text.startswith(f"{line} ")]
    return float(found[0].rpartition(" ")[2]) if found else 0.0


def test_words_are_aligned_without_the_model(service: Running):
    calls = value(service, 'adapedit_model_calls_total{model="tiny"}')
    body = {"source_prompt": "a red dog", "target_prompt": "a small blue dog"}
    found = service.client.post("/v1/alignments", json=body).json()
    assert [(word["text"], word["kind"]) for word in found["target_words"]] == [
        ("a", "kept"),
        ("small", "inserted"),
        ("blue", "replaced"),
        ("dog", "kept"),
    ]
    assert value(service, 'adapedit_model_calls_total{model="tiny"}') == calls
    for wrong in ({}, {**body, "seed": 1}, {**body, "source_prompt": 3}):
        assert service.client.post("/v1/alignments", json=wrong).status_code == 400
    assert service.client.post("/v1/alignments", json={**body, "source_prompt": "a" * 301}).status_code == 422


def test_metrics_count_what_happened(service: Running):
    names = [
        'adapedit_edits_total{method="masactrl",reason="completed"}',
        "adapedit_edit_seconds_count",
        "adapedit_queue_seconds_count",
        "adapedit_prepare_seconds_count",
        "adapedit_step_seconds_count",
        "adapedit_decode_seconds_count",
        'adapedit_model_calls_total{model="tiny"}',
        'adapedit_refused_total{status="400"}',
    ]
    before = [value(service, name) for name in names]
    service.done(method="masactrl", seed=77)
    assert service.edit(seed="x").status_code == 400
    after = [value(service, name) for name in names]
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1, 1, 1, 1, 1, 2, 1]
    assert value(service, 'adapedit_cache_lookups_total{cache="prompts",found="hit",model="tiny"}') > 0
    assert value(service, 'adapedit_running{model="tiny"}') == 0


def test_models_are_loaded_anew_beside_what_runs(tiny_folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("adapedit.http.jobs.SWEEP", 0.05)
    settings = settings_for(tiny_folder, tmp_path, max_rows=8)
    (source,) = settings.models
    with serving(settings) as running:
        ids = [running.edit(num_inference_steps=20, seed=seed).json()["id"] for seed in range(8)]
        first = running.jobs.lanes["tiny"]
        running.jobs.reload([source, ModelSource(name="more", source=source.source, device="cpu")])
        assert running.jobs.lanes["tiny"] is not first
        assert {running.ended(id)["status"] for id in ids} == {"completed"}
        assert running.done(model="more")["model"] == "more"
        running.jobs.reload([source, ModelSource(name="more", source=str(tmp_path / "nothing"))])
        assert running.done(model="more")["model"] == "more"
        running.jobs.reload([source])
        assert running.edit(model="more").status_code == 404
        until = time.monotonic() + 20
        while running.jobs._leaving:  # nobody holds what has ended
            assert time.monotonic() < until
            time.sleep(0.02)


def test_a_model_that_breaks_is_said(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with serving(settings_for(tiny_folder, tmp_path)) as running:

        def broken(self, scheduler):
            raise OSError("the device is gone")

        monkeypatch.setattr("adapedit.server.EditServer._feed", broken)
        id = running.edit().json()["id"]
        found = running.ended(id)
        assert found["error"]["code"] == "internal_server_error" and "device" not in found["error"]["message"]
        running.edit()
        running.jobs.lanes["tiny"].join(10)
        assert running.client.get("/health").status_code == 503
        assert running.client.get("/health").json()["models"] == {"tiny": "failed"}


def test_log_lines_quote_nobody():
    def record(name: str, message: str, error: Exception | None = None) -> str:
        info = None if error is None else (type(error), error, error.__traceback__)
        return Lines().format(logging.LogRecord(name, logging.ERROR, "", 0, message, (), info))

    try:
        raise ValueError("a secret prompt")
    except ValueError as error:
        text = record("transformers", "cut: a secret prompt", error)
    assert "secret" not in text and "ValueError at test_operations.py" in text
    assert '"message": "ready"' in record("adapedit.http", "ready")
