"""Spans of edits lie under those of the requests that asked for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapedit import AdapEditError
from adapedit.http.traces import Traces
from tests.helpers.service import serving, settings_for

pytest.importorskip("opentelemetry.sdk")
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


def test_an_edit_has_a_span_with_its_stages(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kept = InMemorySpanExporter()
    monkeypatch.setattr(
        "opentelemetry.sdk.trace.export.BatchSpanProcessor", lambda exporter: SimpleSpanProcessor(kept)
    )
    with serving(settings_for(tiny_folder, tmp_path, traces="http://127.0.0.1:9")) as running:
        found = running.done()
    spans = {span.name: span for span in kept.get_finished_spans()}
    assert {"edit", "queue", "prepare", "run", "decode"} <= set(spans)
    edit = spans["edit"]
    assert (
        edit.attributes["adapedit.edit"] == found["id"] and edit.attributes["adapedit.reason"] == "completed"
    )
    for name in ("queue", "prepare", "run", "decode"):
        assert spans[name].parent.span_id == edit.context.span_id
        assert edit.start_time <= spans[name].start_time <= spans[name].end_time <= edit.end_time
    request = next(span for span in kept.get_finished_spans() if span.name.startswith("POST"))
    assert edit.parent is not None and edit.parent.trace_id == request.context.trace_id
    assert "dog" not in "".join(span.to_json() for span in kept.get_finished_spans())


def test_without_a_collector_there_are_none_and_without_the_extra_a_line(monkeypatch: pytest.MonkeyPatch):
    none = Traces(None)
    assert none.here() is None and none.of_requests["tracing"] is False
    none.edit(None, {}, {})
    none.close()
    monkeypatch.setattr("adapedit.http.find_spec", lambda name: None)
    with pytest.raises(AdapEditError, match=r'pip install "adapedit\[traces\]"'):
        Traces("http://127.0.0.1:4318")
