"""The service beside the server in Python: both sides make the same edits, and what may not wait is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import http


def test_times_of_arrivals():
    assert http.at_random(10, 50) == http.at_random(10, 50) == sorted(http.at_random(10, 50))
    assert http.bursts(10, 20) == [0.0] * 8 + [0.8] * 8 + [1.6] * 4


@pytest.mark.service
def test_both_sides(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    words = ["http", "--quick", "--model", str(tiny_folder), "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    http.main()
    (written,) = tmp_path.iterdir()
    found = json.loads(written.read_text())
    for name in ("model", "runner that sleeps"):
        rates = found[name]["edits_per_s"]
        assert found[name]["http over inside"] == pytest.approx(rates["http"] / rates["inside"], abs=0.01)
        assert set(found[name]["bursts"]["latency_s"]) == {"inside", "http"}
    flood = found["more than may wait"]
    assert flood["accepted"] + flood["refused with 429"] == flood["sent"] and flood["refused with 429"]
    assert flood["most that waited"] <= flood["may wait"]
