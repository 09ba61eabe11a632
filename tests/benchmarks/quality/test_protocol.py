"""The protocol with an editor whose figures are known: reported, resumed, measured again, and told what failed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from adapedit import AdapEditError
from benchmarks.quality import protocol
from benchmarks.quality.pairs import PairLine, read_pairs
from benchmarks.quality.protocol import Protocol, run_pairs
from benchmarks.quality.run import Setup
from benchmarks.quality.store import StoreError
from tests.benchmarks.quality.fake_pairs import SHIFTS, BrightnessMetric, PaintingEditor, base_grey, flat

TARGETS = ["a blue dog", "a big dog", "a red cat", "a red dog jumping", "a bird"]


def lines_of(folder: Path, *more: Any, targets: list[str] = TARGETS) -> list[PairLine]:
    pairs = [{"source_prompt": "a red dog", "target_prompt": target} for target in targets]
    path = folder / "pairs.jsonl"
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in [*pairs, *more])
    )
    return read_pairs(path)


def protocol_of(*metrics: Any, methods: Any = SHIFTS, **options: Any) -> Protocol:
    setup = Setup(**{"num_inference_steps": 50, "batch": 2, **options})
    variants = {name: {"name": name} for name in methods}
    return Protocol(variants=variants, metrics=metrics or [BrightnessMetric()], setup=setup)


def means_of(report: Any, method: str) -> Any:
    return report["groups"]["all"]["means"][method]["clip_directional"]


def but_machine(report: Any) -> Any:
    return {name: value for name, value in report.items() if name not in ("date", "machine", "command")}


def expected(method: str, targets: list[str] = TARGETS) -> list[float]:
    return [SHIFTS[method] / 100 + len(target) / 1000 for target in targets]


def test_means_intervals_and_comparisons_are_those_of_the_figures(tmp_path: Path) -> None:
    editor, seen = PaintingEditor(), []
    report = run_pairs(
        editor,
        lines_of(tmp_path),
        protocol_of(num_inference_steps=9, guidance_scale=3.0),
        tmp_path / "out",
        file="pairs.jsonl",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(6, 15), (12, 15), (15, 15)] and (report["cases"], report["usable"]) == (5, 5)
    assert {(r.num_inference_steps, r.guidance_scale) for r in editor.requests} == {(9, 3.0)}
    for method in SHIFTS:
        found, wanted = means_of(report, method), expected(method)
        assert found["value"] == pytest.approx(np.mean(wanted), abs=1e-6)
        assert min(wanted) <= found["low"] <= found["value"] <= found["high"] <= max(wanted)
    against = report["groups"]["all"]["against"]["sdedit"]["clip_directional"]["difference"]
    assert [against[part] for part in ("low", "value", "high")] == pytest.approx([0.3] * 3, abs=1e-6)
    assert report["failures"] == []
    assert json.loads((tmp_path / "out" / "pairs.json").read_text()) == json.loads(json.dumps(report))


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    run_pairs(PaintingEditor(), lines_of(tmp_path, "{<b>"), protocol_of(), tmp_path / "out", file="<p>.jsonl")
    page = (tmp_path / "out" / "pairs.html").read_text()
    shown = "Best of adapedit by CLIP directional"
    for wanted in ("CLIP directional ↑", shown, "data:image/jpeg", "Left out (1)", "&lt;p&gt;.jsonl"):
        assert wanted in page
    assert "http" not in page and "<b>" not in page
    assert not list((tmp_path / "out").rglob("*.part"))


def test_what_is_scored_is_not_run_again(tmp_path: Path) -> None:
    editor, metric, lines = PaintingEditor(), BrightnessMetric(), lines_of(tmp_path)
    first = run_pairs(editor, lines[:3], protocol_of(metric, methods=["adapedit", "plain"]), tmp_path / "out")
    assert (len(editor.requests), metric.measured, first["usable"]) == (6, 6, 3)
    editor.requests.clear()
    whole = run_pairs(editor, lines, protocol_of(metric), tmp_path / "out")
    assert (len(editor.requests), metric.measured) == (15 - 6, 15)
    editor.requests.clear()
    assert but_machine(run_pairs(editor, lines, protocol_of(metric), tmp_path / "out")) == but_machine(whole)
    assert (len(editor.requests), metric.measured) == (0, 15)
    with pytest.raises(StoreError, match="num_inference_steps was 50 and is 9 now"):
        run_pairs(editor, lines, protocol_of(metric, num_inference_steps=9), tmp_path / "out")


def test_a_run_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    lines = lines_of(tmp_path)
    whole = run_pairs(PaintingEditor(), lines, protocol_of(), tmp_path / "a")
    editor = PaintingEditor()
    editor.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        run_pairs(editor, lines, protocol_of(), tmp_path / "b")
    assert len(editor.requests) == 2 * 2 * 3
    scores = tmp_path / "b" / "scores.jsonl"
    scores.write_bytes(scores.read_bytes()[:-20])  # the last line of the second batch was cut off with it
    editor.requests.clear()
    assert but_machine(run_pairs(editor, lines, protocol_of(), tmp_path / "b")) == but_machine(whole)
    # Its picture is there, but nothing says that it is whole.
    assert len(editor.requests) == 1 + 3


def test_other_metrics_measure_the_pictures_that_were_kept(tmp_path: Path) -> None:
    editor, lines = PaintingEditor(), lines_of(tmp_path)
    run_pairs(editor, lines, protocol_of(), tmp_path / "out")
    kept = sorted((tmp_path / "out" / "pictures").rglob("*.png"))
    assert len(kept) == 5 * 4 and {path.name.rpartition("-")[0] for path in kept} == {"", *SHIFTS}
    editor.requests.clear()
    kept[0].write_bytes(b"torn")  # an edit of the first pair
    next(path for path in reversed(kept) if path.name == "source.png").unlink()  # the source of the last
    other = BrightnessMetric("2")
    again = run_pairs(editor, lines, protocol_of(other), tmp_path / "out")
    assert kept[0].name.startswith("adapedit") and (len(editor.requests), other.measured) == (1 + 3, 15)
    assert means_of(again, "plain")["value"] == pytest.approx(np.mean(expected("plain")))
    assert again["about"]["brightness"] == "2"


def test_edits_are_measured_against_the_source_of_their_own_model(tmp_path: Path) -> None:
    lines, measured = lines_of(tmp_path)[:2], BrightnessMetric()
    run_pairs(PaintingEditor(), lines, protocol_of(measured, methods=["plain"]), tmp_path / "out")
    # As the store advises where scores are of another model; the pictures stay where they are.
    (tmp_path / "out" / "scores.jsonl").unlink()
    other = PaintingEditor()
    other.model.text_encoder.weight.add_(1)
    edit = other._edit
    other._edit = lambda request: SimpleNamespace(  # type: ignore[method-assign]
        source_image=flat(1), target_image=edit(request).target_image
    )
    report = run_pairs(other, lines, protocol_of(measured, methods=["plain"]), tmp_path / "out")
    brighter = base_grey("a red dog") + SHIFTS["plain"] - 1
    wanted = np.mean([brighter / 100 + len(target) / 1000 for target in TARGETS[:2]])
    assert means_of(report, "plain")["value"] == pytest.approx(wanted, abs=1e-6)


def test_equal_lines_are_edited_once_and_counted_each(tmp_path: Path) -> None:
    editor = PaintingEditor()
    report = run_pairs(
        editor, lines_of(tmp_path, targets=["a cat", "a cat"]), protocol_of(), tmp_path / "out"
    )
    assert len(editor.requests) == 3 and report["usable"] == 2


def test_what_fails_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    dog = {"source_prompt": "a red dog"}
    more = [
        {**dog, "target_prompt": "a red dog and a cat", "name": "wordy"},
        {**dog, "target_prompt": "darkness", "name": "dark"},
        {**dog, "target_prompt": "a cow", "knobs": {"sdedit": {"power": 1}}},
        '{"source_prompt"',
    ]
    editor, metric = PaintingEditor(refused=["a big dog"]), BrightnessMetric(longest=5)
    lines = lines_of(tmp_path, *more)
    report = run_pairs(editor, lines, protocol_of(metric), tmp_path / "out")
    assert report["usable"] == 4 and report["cases"] == 9
    found = {(failure["line"], failure["variant"]): failure["error"] for failure in report["failures"]}
    for key, message in {
        (6, None): "longer than 5 words",
        (8, None): "power",
        (9, None): "it is no JSON",
        (2, "adapedit"): "'a big dog' is too much",
        (2, "plain"): "'a big dog' is too much",
        (7, "sdedit"): "clip_directional came out as nan",
    }.items():
        assert message in found[key] and "\n" not in found[key]
    assert len(found) == 6 + 3  # the other methods on lines 2 and 7
    wanted = np.mean(expected("plain", [target for target in TARGETS if target != "a big dog"]))
    assert means_of(report, "plain")["value"] == pytest.approx(wanted)
    # Failures are tried again, and only they.
    editor.requests.clear()
    editor.refused = []
    again = run_pairs(editor, lines, protocol_of(metric), tmp_path / "out")
    assert again["usable"] == 5 and {r.target_prompt for r in editor.requests} == {"a big dog", "darkness"}


def test_a_method_that_can_edit_nothing_is_named(tmp_path: Path) -> None:
    editor = PaintingEditor(refused=["sdedit:"])
    lines, others = lines_of(tmp_path, "{"), protocol_of(methods=["adapedit", "plain"])
    with pytest.raises(AdapEditError, match="by sdedit; leave it out with --only .*is too much") as error:
        run_pairs(editor, lines, protocol_of(), tmp_path / "out")
    assert "\n" not in str(error.value)
    # What the others did is not lost.
    editor.requests.clear()
    assert run_pairs(editor, lines, others, tmp_path / "out")["usable"] == 5 and not editor.requests
    with pytest.raises(AdapEditError, match="none of the 1 lines .* line 1 failed: it is no JSON"):
        run_pairs(editor, lines_of(tmp_path, "{", targets=[]), protocol_of(), tmp_path / "other")


def test_the_papers_figures_are_shown_where_the_model_is_like_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor, page = PaintingEditor(), tmp_path / "out" / "pairs.html"
    assert run_pairs(editor, lines_of(tmp_path), protocol_of(), tmp_path / "out")["paper"] is None
    assert "27.08" not in page.read_text()
    monkeypatch.setattr(protocol, "PAPERS_SHAPE", (2, editor.model.latent_size))
    report = run_pairs(editor, lines_of(tmp_path), protocol_of(), tmp_path / "out")
    assert report["paper"]["means"]["adapedit"]["clip_score"] == 27.08
    assert "Not measured here" in page.read_text() and "27.08" in page.read_text()
