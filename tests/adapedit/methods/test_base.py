"""Methods by name, their knobs, and the plans that a context makes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

from adapedit import AdapEditError, EditRequest
from adapedit.methods import METHODS, Method, make_settings
from adapedit.methods.base import Settings, Share, made, side_by_side
from adapedit_engine.plan import EditOutcome
from tests.helpers.edits import SOURCE, STEPS, TARGET, grey_levels, request
from tests.helpers.methods import context_of, run
from tests.helpers.tiny_model import TOKENS


def test_a_class_with_a_name_is_registered_and_checks_its_knobs() -> None:
    class Kind(Settings):
        registry: ClassVar[dict[str, Any]] = {}

    class Mine(Kind, name="mine"):
        gone: ClassVar = {"old": "use share"}
        share: Share = 0.5

    assert Kind.registry == {"mine": Mine} and Mine.knobs() == ("share",)
    assert Mine(share=1).model_dump() == {"name": "mine", "share": 1.0}
    assert made(Kind.registry, "kind", "mine", {"share": 0.2}).share == 0.2
    for name, knobs, said in (
        ("other", {}, "there is no kind 'other'; use one of: mine"),
        (["mine"], {}, "there is no kind"),
        ("mine", {"shares": 1}, "kind mine has no knob 'shares'; its knobs: share"),
        ("mine", {"name": "mine"}, "kind mine has no knob 'name'"),
        ("mine", {"old": 1}, "^knob 'old' is gone: use share$"),
        ("mine", {"share": 2}, "share is 2: input should be less than or equal to 1"),
    ):
        with pytest.raises(AdapEditError, match=said):
            made(Kind.registry, "kind", name, knobs)  # type: ignore[arg-type]


def test_a_models_defaults_hold_for_what_was_not_named() -> None:
    defaults = {"lambda_tau": 0.5, "lambda_s": 0.7}
    found = make_settings("adapedit", lambda_s=0.9).with_defaults(defaults)
    assert (found.lambda_tau, found.lambda_s, found.lambda_spatial) == (0.5, 0.9, 1.0)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_written_down_and_read_again(name: str) -> None:
    method = make_settings(name)
    assert isinstance(method, Method) and method.name == name
    asked = EditRequest.make(source_prompt="a", target_prompt="b", method=method)
    assert EditRequest.make(**asked.model_dump(mode="json")).method == method
    assert len({method, make_settings(name)}) == 1


def test_knobs_are_checked_without_torch() -> None:
    code = "import adapedit.methods, adapedit.inversion, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("method", ["plain", "adapedit", "prompt-to-prompt", "masactrl"])
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_guidance_of_one_or_less_is_the_conditional_prediction_alone(
    pipe: Any, method: str, scale: float
) -> None:
    asked = request(method=method).model_copy(update={"guidance_scale": scale})
    context, made_method = context_of(pipe, asked)
    plan = made_method.plan(replace(context, unconditional_steps=torch.zeros(STEPS, TOKENS, 32)), None)
    assert plan.guidance == 1 and plan.unconditional_steps is None
    (alone,), (guided,) = (
        run(pipe, [each])
        for each in (plan, made_method.plan(replace(context, guidance_scale=3.0), None).without_guidance())
    )
    torch.testing.assert_close(alone.latents, guided.latents, rtol=1e-5, atol=1e-5)


def test_a_plan_is_of_source_and_target_unless_it_is_told(pipe: Any) -> None:
    context, _ = context_of(pipe, request())
    plan = context.plan()
    assert plan.source_track == (0, 0) and plan.cross_attention.own_weight.eq(1).all()
    assert not context.plan(("source", "target")).edited
    known = replace(context, source_latents=torch.zeros(STEPS, 4, 8, 8))
    assert known.plan().source_latents is not None
    assert known.plan(("target",)).source_latents is None


def test_layers_take_from_the_source_in_whole_steps_rounded_down(pipe: Any) -> None:
    context, _ = context_of(pipe, request(steps=10))
    layers = torch.zeros(len(context.specs.self_layers), dtype=torch.bool)
    layers[0] = True
    for start, stop, wanted in ((0.0, 0.33, [0, 3]), (0.3, 1.0, [3, 10]), (0.0, torch.tensor(0.59), [0, 5])):
        taken = context.from_source(layers, start, stop)
        assert taken.dtype == torch.int64 and not taken[0].any() and not taken[1, 1:].any()
        assert taken[1, 0].tolist() == wanted


@pytest.mark.parametrize("method", ["plain", "masactrl", "prompt-to-prompt", "sdedit", "adapedit"])
def test_all_methods_share_a_batch_and_a_source(pipe: Any, method: str) -> None:
    asked = [request(method=name) for name in METHODS if name != "instruct-pix2pix"]
    together = dict(zip((one.method.name for one in asked), pipe.edit_batch(asked), strict=True))
    (alone,) = pipe.edit_batch([request(method=method)])
    assert grey_levels(together[method].source_image, together["plain"].source_image) <= 1
    assert grey_levels(together[method].target_image, alone.target_image) <= 1


def outcome(device: str, tracks: int, pixels: int) -> EditOutcome:
    """A pass over so many tracks, on that device; "meta" stands in for a GPU's."""
    return EditOutcome(
        latents=torch.zeros(tracks, 4, 8, 8, device=device),
        maps=torch.zeros(tracks, pixels, TOKENS, device=device),
        broken_step=torch.full((tracks,), -1, device=device),
        steps=STEPS,
    )


def test_what_was_copied_to_the_host_is_put_beside_what_was_seen() -> None:
    both = side_by_side(
        outcome("cpu", 1, 16), replace(outcome("meta", 1, 16), features=torch.zeros(1, 16, 4))
    )
    assert both.latents.shape[0] == len(both.maps) == len(both.broken_step) == 2 and both.features is None
    assert {both.latents.device.type, both.maps.device.type} == {"meta"}


@pytest.mark.parametrize("name", ["sdedit", "adapedit"])
def test_plans_take_what_was_seen_where_it_lies(pipe: Any, name: str) -> None:
    """Of the first pass nothing is copied to the host."""
    knobs = {"two_pass": True, "local_blend": True, "observed_prompts": "both", "blend_difference": 0.3}
    knobs = knobs if name == "adapedit" else {}
    context, method = context_of(pipe, request(SOURCE, TARGET, method=name, **knobs))
    pixels = context.map_size[0] * context.map_size[1]
    features = torch.zeros(2, pixels, 8, device="meta")
    seen = replace(outcome("meta", 2, pixels), features=features, last_features=features)
    plan = method.plan(context, seen)
    if name == "sdedit":
        assert plan.latents.device.type == "meta"
        return
    cross = plan.cross_attention
    assert {cross.word_steps.device.type, cross.spatial_map.device.type} == {"meta"}
    assert plan.self_attention.query.device.type == plan.local_blend.places.device.type == "meta"
