"""MasaCtrl: at its limits, and what its rows take at each step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adapedit import AdapEditPipeline, EditResult
from adapedit.methods import make_settings
from adapedit_engine.plan import held_steps
from tests.helpers.edits import grey_levels, request
from tests.helpers.methods import inputs_at, plan_of


def edit(pipe: AdapEditPipeline, method: str, **knobs: Any) -> EditResult:
    return pipe.edit_batch([request(method=method, seed=3, **knobs)])[0]


@pytest.mark.parametrize("knobs", [{"start_step": 1.0}, {"start_layer": 1.0}])
def test_what_never_begins_is_plain(coarse: AdapEditPipeline, knobs: dict[str, float]) -> None:
    result, plain = edit(coarse, "masactrl", **knobs), edit(coarse, "plain")
    assert grey_levels(result.target_image, plain.target_image) <= 1
    assert grey_levels(result.source_image, plain.source_image) <= 1


def test_it_changes_the_target_and_never_the_source(coarse: AdapEditPipeline) -> None:
    result, plain = edit(coarse, "masactrl", start_step=0.0, start_layer=0.0), edit(coarse, "plain")
    assert grey_levels(result.source_image, plain.source_image) <= 1
    assert np.array_equal(result.source_maps, edit(coarse, "masactrl").source_maps)
    # Random weights hardly look around: the pictures differ by less than a grey level, the maps tell.
    assert np.abs(result.target_maps - plain.target_maps).max() > 1e-6


def test_keys_and_values_are_taken_in_the_decoder_in_all_guidance_rows(coarse: AdapEditPipeline) -> None:
    plan = plan_of(coarse, request(method="masactrl", steps=50))
    specs = coarse.model.runner.specs
    decoder = [place for place, layer in enumerate(specs.self_layers) if layer.place == "up"]
    passed = round(len(decoder) / 3)
    for step in (3, 4, 49):
        inputs = inputs_at(coarse, plan, step)
        assert "self_query_row" not in inputs
        for name in ("self_key_row", "self_value_row"):
            for layer in range(len(specs.self_layers)):
                taken = step >= 4 and layer in decoder[passed:]
                rows = inputs[name][layer].tolist() if name in inputs else [0, 1, 2, 3]
                assert rows == ([0, 1, 0, 1] if taken else [0, 1, 2, 3])


def test_the_defaults_are_step_four_and_layer_ten_of_stable_diffusion() -> None:
    # Six layers on the way down, one in the middle, nine on the way up: layer 10 is the fourth of these.
    assert 7 + round(make_settings("masactrl").start_layer * 9) == 10
    assert held_steps(make_settings("masactrl").start_step, 50) == 4
