from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from adapedit_engine import (
    Adaptive,
    EditPlan,
    LocalBlend,
    PlanError,
    PyTorchRunner,
    Schedule,
    check_plan,
    denoise,
    held,
    plan_rows,
    spatial_weight,
)
from adapedit_engine.adaptive import AdaptiveError
from adapedit_engine.blend import BlendError
from tests.engine.tiny import SIDE, STEPS, TEXT, TOKENS, edit_plan, noise, plan, tiny_unet


def test_rows_and_defaults():
    one, several = plan(1), edit_plan(1, 2, 3)
    assert (plan_rows(one), plan_rows(several)) == (2, 6)
    assert one.source_track == (0,)
    assert not one.edited and several.edited
    assert not several.needs_maps and edit_plan(1, 2, collect=True).needs_maps


def test_held_is_what_the_method_says_also_where_products_round():
    for steps in (1, 3, 10, 30, 50, 1000):
        wholes, index = torch.arange(steps + 1), torch.arange(steps)[:, None]
        shares = torch.tensor([whole / steps for whole in range(steps + 1)])
        assert torch.equal(held(index, shares, steps), index < wholes)
    assert bool(held(12, torch.tensor(0.25), 50)) and not bool(held(13, torch.tensor(0.25), 50))


def test_spatial_weight_is_strength_where_a_token_is_free_and_has_a_counterpart():
    held_now = torch.tensor([[False, True, False, True]])
    own = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    assert spatial_weight(held_now, own, torch.tensor([0.7])).tolist() == [[pytest.approx(0.7), 0, 0, 0]]


FLAGS = torch.ones(STEPS, 7, 2, dtype=torch.bool)
KEYS: dict[str, Any] = {
    "key_tokens": torch.zeros(2, TOKENS, dtype=torch.bool),
    "word_of_token": torch.zeros(2, TOKENS).long(),
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents": noise(4, SIDE, SIDE)}, r"wanted latents \[tracks, C, h, w\].*got \(4, 8, 8\)"),
        ({"latents": noise(3, 4, SIDE, SIDE)}, "latents have 3 tracks, encoder_hidden_states 2"),
        ({"guidance_weights": torch.ones(2, 3)}, r"guidance_weights has shape \(2, 3\), wanted \(2, 2\)"),
        ({"token_map": torch.eye(TOKENS)}, r"token_map has shape \(6, 6\), wanted \(2, 6, 6\)"),
        ({"own_weight": torch.ones(2, 5)}, r"own_weight has shape \(2, 5\), wanted \(2, 6\)"),
        ({"strength": torch.ones(1)}, r"strength has shape \(1,\), wanted \(2,\)"),
        ({"self_query": FLAGS[:2]}, r"self_query has shape \(2, 7, 2\), wanted \(5, any, 2\)"),
        ({"self_value": FLAGS.float()}, "self_value is torch.float32, wanted torch.bool"),
        ({"source_track": (0, 2)}, r"source_track is \(0, 2\), wanted 2 numbers below 2"),
        ({"source_track": (1, 0)}, "a source track can't be edited itself"),
        ({"source_track": (0,)}, "wanted 2 numbers below 2"),
        (
            {"own_weight": None},
            "an edited track needs token_map, own_weight, word_steps; own_weight is missing",
        ),
        ({"noise": noise(3, 4, SIDE, SIDE)}, r"noise has shape .*wanted \(5, 4, 8, 8\) or \(5, 2, 4, 8, 8\)"),
        (
            {"schedule": Schedule.from_scheduler(DDPMScheduler(clip_sample=False), STEPS)},
            "this schedule adds noise at every step: give noise",
        ),
        ({"conditioning_channels": noise(2, 2, 4, 4, 4)}, "conditioning_channels has shape"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, message: str):
    with pytest.raises(PlanError, match=message):
        edit_plan(1, 2, **changes)


@pytest.mark.parametrize(
    ("part", "error", "message"),
    [
        (LocalBlend(token_weights=torch.ones(1, TOKENS)), BlendError, r"token_weights has shape \(1, 6\)"),
        (LocalBlend(token_weights=torch.ones(2, TOKENS), threshold=1.5), BlendError, "threshold is 1.5"),
        (LocalBlend(token_weights=torch.ones(2, TOKENS), start=float("nan")), BlendError, "start is nan"),
        (
            Adaptive(**{**KEYS, "key_tokens": torch.ones(2, 2)}),
            AdaptiveError,
            r"key_tokens has shape \(2, 2\)",
        ),
        (Adaptive(**KEYS, self_layers=FLAGS[0, :, :1]), AdaptiveError, "self_layers has 1 tracks, wanted 2"),
        (Adaptive(**KEYS, update_every=0), AdaptiveError, "update_every is 0, wanted at least 1"),
    ],
)
def test_blend_and_adaptive_parts_are_checked(part, error, message: str):
    name = "local_blend" if isinstance(part, LocalBlend) else "adaptive"
    with pytest.raises(error, match=message):
        edit_plan(1, 2, **{name: part})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents": noise(2, 3, SIDE, SIDE)}, "latents have 3 channels and 0 conditioning channels"),
        (
            {"conditioning_channels": noise(2, 2, 1, SIDE, SIDE)},
            "4 channels and 1 conditioning channels, this model takes 4",
        ),
        (
            {"encoder_hidden_states": noise(2, 2, TOKENS, 5)},
            f"encoder_hidden_states are 5 wide, this model wants {TEXT}",
        ),
        ({"spatial_map": torch.ones(2, 9)}, "spatial_map has 9 pixels, wanted 8 x 8"),
        ({"self_key": FLAGS[:, :3]}, "self_key is for 3 self-attention layers, this model has 7"),
        (
            {"adaptive": Adaptive(**KEYS, self_layers=FLAGS[0, :3])},
            "adaptive.self_layers has 3 layers, this model has 7",
        ),
    ],
)
def test_plans_that_do_not_fit_the_model_are_refused_before_any_work(changes, message: str):
    unet = tiny_unet()
    unet.conv_in.register_forward_pre_hook(lambda *_: pytest.fail("work was begun"))
    with PyTorchRunner(unet, map_divisor=1) as runner:
        with pytest.raises(PlanError, match=message):
            check_plan(edit_plan(1, 2, **changes), runner.specs)
        with pytest.raises(PlanError, match=message):
            denoise([plan(1), edit_plan(1, 2, **changes)], runner)


def test_a_plan_can_not_be_changed():
    with pytest.raises(AttributeError):
        plan(1).collect = True  # type: ignore[misc]
    assert isinstance(plan(1), EditPlan)
