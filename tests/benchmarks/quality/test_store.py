"""Which scores may stand side by side: all that edits depend on is noted, and the report says it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adapedit.editors import editing_runner
from adapedit.evaluation import run as runs
from benchmarks.quality.protocol.run import run_pairs
from benchmarks.quality.run import run_study
from benchmarks.quality.scores import load_editors, settings_digest
from benchmarks.quality.store import ScoreStore, StoreError, about_model
from benchmarks.quality.studies import make_study
from benchmarks.quality.suite import scene_suite
from adapedit.methods.settings import make_settings
from adapedit.model import load_model
from tests.benchmarks.quality.fake_editor import DrawingEditor
from tests.benchmarks.quality.fake_pairs import PaintingEditor
from tests.benchmarks.quality.test_protocol import lines_of, protocol_of
from tests.helpers.tiny_editor import save_tiny_editor
from tests.helpers.tiny_model import save_tiny_model


def with_facts(**changes: Any) -> Any:
    return lambda model: setattr(model, "facts", dataclasses.replace(model.facts, **changes))


def with_dtype(model: Any) -> None:
    model.runner.dtype = torch.float16


def with_maps(model: Any) -> None:
    model.runner.specs.map_divisor = 2


def with_schedule(model: Any) -> None:
    model.scheduler = SimpleNamespace(config={"beta_start": 0.001})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_facts(guidance_scale=2.0), "guidance_scale was 7.5 and is 2.0 now"),
        (with_facts(self_divisor=2), "self_divisor was 4 and is 2 now"),
        (with_dtype, "dtype was 'float32' and is 'float16' now"),
        (with_maps, "map_divisor was 1 and is 2 now"),
        (
            with_schedule,
            "scheduler was 'SimpleNamespace [0-9a-f]{8}' and is 'SimpleNamespace [0-9a-f]{8}' now",
        ),
    ],
)
def test_scores_of_another_model_are_refused(
    change: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "unet_rows", lambda pipe, study, *rest: dict.fromkeys(study.variants, 4.0))
    drawing, painting = DrawingEditor(), PaintingEditor()
    study, cases, lines = make_study("scenes", ["adapedit"]), scene_suite(limit=1), lines_of(tmp_path)[:1]
    run_study(drawing, study, cases, tmp_path / "a", reader=drawing.reader)
    run_pairs(painting, lines, protocol_of(methods=["plain"]), tmp_path / "b")
    change(drawing.model)
    with pytest.raises(StoreError, match=said):
        run_study(drawing, study, cases, tmp_path / "a", reader=drawing.reader)
    change(painting.model)
    with pytest.raises(StoreError, match=said):
        run_pairs(painting, lines, protocol_of(methods=["plain"]), tmp_path / "b")


def test_a_guidance_that_is_named_is_no_other_than_the_models_own() -> None:
    model = DrawingEditor().model
    assert about_model(model, None) == about_model(model, 7.5) != about_model(model, 2.0)
    assert json.loads(json.dumps(about_model(model, None))) == about_model(model, None)


def test_what_was_not_noted_is_not_taken_to_be_the_same(tmp_path: Path) -> None:
    ScoreStore(tmp_path / "scores", {"weights": "1"})
    with pytest.raises(StoreError, match="dtype was not noted and is 'float16' now"):
        ScoreStore(tmp_path / "scores", {"weights": "1", "dtype": "float16"})


def test_reports_say_what_edits_ran_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "unet_rows", lambda pipe, study, *rest: dict.fromkeys(study.variants, 4.0))
    drawing, painting = DrawingEditor(), PaintingEditor()
    for editor in (drawing, painting):
        own = {"sdedit": {"strength": 0.9}, "adapedit": {"lambda_spatial": 4.0}}
        with_facts(defaults=own, guidance_scale=2.0)(editor.model)
    study = make_study("scenes", ["adapedit", "sdedit"], {"adapedit": {"lambda_tau": 0.5}})
    found = run_study(drawing, study, scene_suite(limit=1), tmp_path / "a", reader=drawing.reader)
    assert (found["guidance_scale"], found["settings"]["sdedit"]["strength"]) == (2.0, 0.9)
    assert (
        found["settings"]["adapedit"]
        == make_settings("adapedit", lambda_tau=0.5, lambda_spatial=4.0).model_dump()
    )
    found = run_pairs(painting, lines_of(tmp_path), protocol_of(methods=["plain", "sdedit"]), tmp_path / "b")
    assert (found["guidance_scale"], found["settings"]["sdedit"]["strength"]) == (2.0, 0.9)


def test_digests_tell_the_weights_of_methods_with_a_unet_of_their_own(tmp_path: Path) -> None:
    folder = save_tiny_editor(tmp_path / "editor")
    pipe: Any = SimpleNamespace(model=load_model(save_tiny_model(tmp_path / "model")))
    settings = make_settings("instruct-pix2pix", checkpoint=str(folder))

    def digest() -> str:
        pipe.model.editors.clear()
        load_editors(
            pipe, [settings, make_settings("plain"), make_settings("instruct-pix2pix", checkpoint="no")]
        )
        return settings_digest(pipe, settings)

    before = digest()
    assert digest() == before and list(pipe.model.editors) == [str(folder)]
    unet: Any = editing_runner(str(folder), pipe.model).controlled.unet  # type: ignore[attr-defined]
    unet.conv_in.bias.add_(0.01)
    unet.save_pretrained(folder / "unet")
    assert digest() != before
