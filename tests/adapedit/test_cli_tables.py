"""Tables at 80 columns and in a pipe: no figure is cut, folded or left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from adapedit.cli import show
from adapedit_engine.bundle import PLANS_FOLDER, Bundle, write_record
from adapedit_engine.manifest import GRAPHS, FileSpec, PlanKey, PlanRecord
from adapedit_export.check import Finding
from tests.engine.manifests import a_manifest

ODD = (1234.5678, 0.000123456, 9.87654e-11)
"""Of which "1.2e+03", "0.00012" and "9.9e-11" are shown: the longest there are."""


@pytest.fixture(params=["a terminal", "a pipe"])
def printed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    """What has been printed, to a terminal of 80 columns or into a pipe."""
    monkeypatch.setenv("COLUMNS", "80")
    if request.param == "a terminal":
        monkeypatch.setattr(show, "console", lambda: Console(width=80))

    def read() -> str:
        text: str = capsys.readouterr().out
        assert "…" not in text
        if request.param == "a terminal":
            assert max(map(len, text.splitlines())) <= 80
        return text

    return read


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    for name in GRAPHS:
        (tmp_path / f"{name}.onnx").write_bytes(b"x" * 1_234_567)
    manifest = a_manifest(tmp_path)
    largest, mean, ratio = ODD
    numbers = {"largest": largest, "mean": mean, "ratio": ratio}
    manifest["parity"] = {stage: {"cross_attention_maps": numbers} for stage in ("text_projection", "edit")}
    manifest["graphs"]["unet"]["nodes"] = 1_234_567
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return Bundle.open(tmp_path)


def test_inspect_loses_no_figure(bundle, printed):
    show.print_bundle(bundle, False)
    text = printed()
    assert text.count("1.2e+03") == text.count("0.00012") == text.count("9.9e-11") == 2
    assert "1234567" in text and text.count(" 1.2\n") + text.count(" 1.2 ") == len(GRAPHS)


def test_check_loses_no_figure(printed):
    largest, mean, ratio = ODD
    found = [
        Finding(
            runner="onnxruntime-cuda", stage="text_projection", output="cross_attention_maps",
            largest=largest, mean=mean, ratio=ratio, measure="largest", limit=1e-5,
        )
    ]  # fmt: skip
    show.print_findings(found, {"tensorrt": "no library"}, False)
    text = printed()
    for figure in ("1.2e+03", "0.00012", "9.9e-11", "largest 1e-05", "differs", "no library"):
        assert figure in text


def test_plans_lose_no_figure(bundle, printed):
    key = PlanKey(
        graph="text_projection", onnx_sha256=bundle.graph_hash("text_projection"), family="tensorrt-rtx",
        version="1.2.0.54", compute_capability="12.0", workload="interactive",
        profiles=({"x": ((1,), (1,), (1,))},), refit=True,
    )  # fmt: skip
    size = FileSpec(bytes=12_345_600_000, sha256="0" * 64)
    record = PlanRecord(
        key=key, file=size, layers=12345, activation_bytes=98_765_400_000, build_seconds=4321.9
    )
    (bundle.folder / PLANS_FOLDER).mkdir()
    write_record(bundle.folder / PLANS_FOLDER, record)
    show.print_plans(bundle, [record], False)
    text = printed()
    for figure in ("12.0", "12345", "12345.6", "98765.4", "4321.9", "1.2.0.54"):
        assert figure in text
