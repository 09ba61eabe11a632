"""MasaCtrl and SDEdit at their limits, in the same engine and with the same result as every other method."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler

from adapedit.methods import make_settings

from adapedit.noising import noise_levels
from adapedit.pipeline import AdapEditPipeline
from adapedit.prepare import complete, make_context
from adapedit.request import EditRequest
from adapedit.result import EditResult
from adapedit_engine.rows import RowTables
from tests.helpers.tiny_model import SCHEDULER, save_tiny_model

SOURCE, TARGET = "a red dog standing on the grass", "a red dog sitting on the grass"
STEPS = 5


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> AdapEditPipeline:
    torch.set_num_threads(1)
    folder = save_tiny_model(tmp_path_factory.mktemp("tiny"), facts={"self_divisor": 1})
    return AdapEditPipeline.from_pretrained(folder)


def request(method: str, steps: int = STEPS, **knobs: Any) -> EditRequest:
    return EditRequest.make(
        source_prompt=SOURCE,
        target_prompt=TARGET,
        num_inference_steps=steps,
        seed=3,
        guidance_scale=3.0,
        method=make_settings(method, **knobs),
    )


def edit(pipe: AdapEditPipeline, method: str, **knobs: Any) -> EditResult:
    return pipe.edit_batch([request(method, **knobs)])[0]


def pixels(picture: Any) -> np.ndarray:
    return np.asarray(picture).astype(int)


def moved(one: Any, two: Any) -> float:
    return float(np.abs(pixels(one) - pixels(two)).max())


@pytest.fixture(scope="module")
def plain(pipe: AdapEditPipeline) -> EditResult:
    return edit(pipe, "plain")


@pytest.mark.parametrize("knobs", [{"start_step": 1.0}, {"start_layer": 1.0}])
def test_masactrl_that_never_begins_is_plain(
    pipe: AdapEditPipeline, plain: EditResult, knobs: dict[str, float]
) -> None:
    result = edit(pipe, "masactrl", **knobs)
    assert moved(result.target_image, plain.target_image) <= 1
    assert moved(result.source_image, plain.source_image) <= 1


def test_masactrl_changes_the_target_and_never_the_source(pipe: AdapEditPipeline, plain: EditResult) -> None:
    result = edit(pipe, "masactrl", start_step=0.0, start_layer=0.0)
    assert moved(result.source_image, plain.source_image) <= 1
    assert np.array_equal(result.source_maps, edit(pipe, "masactrl").source_maps)
    # Random weights hardly look around: the pictures differ by less than a grey level, the maps tell.
    assert np.abs(result.target_maps - plain.target_maps).max() > 1e-6


def test_masactrl_takes_keys_and_values_in_the_decoder_in_all_guidance_rows(pipe: AdapEditPipeline) -> None:
    asked = complete(request("masactrl", steps=50), pipe.model)
    context = make_context(asked, pipe.model)
    plan = make_method(asked.method, pipe.model.facts).plan(context, None)
    tables = RowTables.build(plan, pipe.model.runner)
    assert "self_query_row" not in tables.self_rows
    decoder = [place for place, layer in enumerate(context.specs.self_layers) if layer.place == "up"]
    passed = round(len(decoder) / 3)
    for name in ("self_key_row", "self_value_row"):
        rows = tables.self_rows[name]
        assert (rows[:4] == torch.arange(4)).all()
        for layer in range(rows.shape[1]):
            taken = layer in decoder[passed:]
            assert rows[4, layer].tolist() == ([0, 1, 0, 1] if taken else [0, 1, 2, 3])


def test_masactrl_maps_layer_ten_of_stable_diffusion() -> None:
    # Six layers on the way down, one in the middle, nine on the way up: layer 10 is the fourth of these.
    assert 7 + round(make_settings("masactrl").start_layer * 9) == 10
    assert round(make_settings("masactrl").start_step * 50) == 4


def test_sdedit_of_no_strength_is_the_source(pipe: AdapEditPipeline, plain: EditResult) -> None:
    result = edit(pipe, "sdedit", strength=0.0)
    assert moved(result.source_image, plain.source_image) <= 1
    assert moved(result.target_image, result.source_image) == 0


def test_sdedit_of_full_strength_is_the_plain_target(pipe: AdapEditPipeline, plain: EditResult) -> None:
    result = edit(pipe, "sdedit", strength=1.0)
    assert moved(result.target_image, plain.target_image) <= 1
    assert moved(result.source_image, plain.source_image) <= 1
    assert np.allclose(result.source_maps, plain.source_maps, atol=1e-4)
    assert np.allclose(result.target_maps, plain.target_maps, atol=1e-4)


def test_sdedit_in_between_is_neither(pipe: AdapEditPipeline, plain: EditResult) -> None:
    result = edit(pipe, "sdedit", strength=0.4)
    assert moved(result.target_image, plain.target_image) > 1 < moved(result.target_image, plain.source_image)


def test_sdedits_of_different_sources_are_not_mixed_up(pipe: AdapEditPipeline) -> None:
    """Their targets begin alike as far as is known before the first pass: one prompt, one seed."""
    asked = [request("sdedit", strength=0.4)]
    asked.append(asked[0].model_copy(update={"source_prompt": "a small dog jumping on the grass"}))
    together = pipe.edit_batch(asked)
    for one, result in zip(asked, together, strict=True):
        alone = pipe.edit_batch([one])[0]
        assert moved(alone.source_image, result.source_image) <= 1
        assert moved(alone.target_image, result.target_image) <= 1
    assert moved(together[0].target_image, together[1].target_image) > 1


def test_all_methods_share_a_batch_and_a_source(pipe: AdapEditPipeline, plain: EditResult) -> None:
    names = ("plain", "masactrl", "prompt-to-prompt", "sdedit", "adapedit")
    together = pipe.edit_batch([request(name) for name in names])
    for name, result in zip(names, together, strict=True):
        assert moved(result.source_image, plain.source_image) <= 1
        assert moved(result.target_image, edit(pipe, name).target_image) <= 1


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_levels_are_where_the_steps_lead(prediction_type: str) -> None:
    """With a perfect model every step keeps picture and noise apart, so the levels follow from the step table."""
    from adapedit_engine.schedule import Schedule

    scheduler = DDIMScheduler(**{**SCHEDULER, "set_alpha_to_one": True}, prediction_type=prediction_type)
    schedule, levels = Schedule.from_scheduler(scheduler, 6), noise_levels(scheduler, 6)
    ends = torch.cat([levels[1:], torch.tensor([[1.0, 0.0]])])
    for i, (signal, noise) in enumerate(levels):
        output = torch.tensor([0.0, 1.0]) if prediction_type == "epsilon" else torch.stack([-noise, signal])
        reached = schedule.sample_weight[i] * levels[i] + schedule.output_weight[i] * output
        assert torch.allclose(reached, ends[i], atol=1e-5)


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, EulerAncestralDiscreteScheduler])
def test_other_schedulers_have_levels_and_sdedit(pipe: AdapEditPipeline, kind: Any, tmp_path: Any) -> None:
    scheduler = kind(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    levels = noise_levels(scheduler, 4)
    assert (levels[:, 0] == 1).all() and (levels[:-1, 1] > levels[1:, 1]).all()
    other = AdapEditPipeline.from_pretrained(pipe.model.name, scheduler=scheduler)
    full, plain = edit(other, "sdedit", strength=1.0), edit(other, "plain")
    assert moved(full.target_image, plain.target_image) <= 1
    assert moved(edit(other, "sdedit", strength=0.0).target_image, plain.source_image) <= 1
