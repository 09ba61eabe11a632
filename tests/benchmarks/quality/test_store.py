"""Scores on disk: they survive a crash, and may stand side by side only where all that edits depend on is the same."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.quality.store import ScoreStore, StoreError, about_model, model_digest
from tests.benchmarks.quality.fake_editor import DrawingEditor


@dataclass(frozen=True)
class Mark:
    name: str
    value: float


MARKS = [Mark("a", 1.0), Mark("b", 2.0), Mark("c", 3.0)]


def test_scores_survive_the_disk_and_a_crash(tmp_path: Path) -> None:
    path, about = tmp_path / "scores.jsonl", {"steps": 30}
    ScoreStore(path, about, Mark).append(MARKS[:2])
    with path.open("a") as file:
        file.write('{"name": "c')  # the machine went down here
    again = ScoreStore(path, about, Mark)
    assert again.scores == MARKS[:2]
    again.append(MARKS[2:])
    assert ScoreStore(path, about, Mark).scores == MARKS


def test_scores_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    ScoreStore(path, {"steps": 30}, Mark)
    with pytest.raises(StoreError, match="another evaluation .steps was 30 and is 50 now"):
        ScoreStore(path, {"steps": 50}, Mark)
    with pytest.raises(StoreError, match="dtype was not noted and is 'float16' now"):
        ScoreStore(path, {"steps": 30, "dtype": "float16"}, Mark)
    with path.open("a") as file:
        file.write('{"name": 3}\n')
    with pytest.raises(StoreError, match="line 2 of .* is no score"):
        ScoreStore(path, {"steps": 30}, Mark)


def test_all_that_edits_owe_to_a_model_is_noted() -> None:
    def changed(name: str, value: Any) -> dict[str, Any]:
        found = DrawingEditor().model
        setattr(found, name, value)
        found.text_encoder = found.vae = model.vae
        return about_model(found, None)

    model = DrawingEditor().model
    about = about_model(model, None)
    facts = dataclasses.replace(model.facts, self_divisor=2)
    for name, value, part in (
        ("facts", facts, "facts"),
        ("runner", SimpleNamespace(dtype=torch.float16), "dtype"),
        ("scheduler", SimpleNamespace(config={"beta_start": 0.001}), "scheduler"),
    ):
        assert {key for key, found in changed(name, value).items() if found != about[key]} == {part}
    assert about == about_model(model, 7.5) != about_model(model, 2.0)
    assert json.loads(json.dumps(about)) == about


def test_digests_tell_weights_apart(tmp_path: Path) -> None:
    one, other = DrawingEditor().model, DrawingEditor().model
    assert model_digest(one) == model_digest(one) != model_digest(other)
    one.name = str(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    before = model_digest(one)
    (tmp_path / "manifest.json").write_text('{"files": {}}')
    assert model_digest(one) != before
