"""Plans as data: shapes from their axes, merging and parting, shares of the trajectory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from adapedit_engine.plan import CrossEdit, EditPlan, PlanError, SelfEdit, held_steps, merge, split, tracks_of
from adapedit_engine.runners.pytorch import PyTorchRunner
from adapedit_engine.schedule import Schedule
from adapedit_engine.scheduler import denoise
from tests.engine.every_plan import TOLD, plans
from tests.engine.tiny import (
    SIDE,
    STEPS,
    TEXT,
    TOKENS,
    adaptive,
    blend,
    edit_plan,
    largest,
    noise,
    plan,
    tiny_unet,
)

INTERVALS = torch.zeros(2, 7, 2, dtype=torch.int64)
KNOWN = noise(STEPS, 4, SIDE, SIDE, seed=5)
EMPTY = noise(STEPS, TOKENS, TEXT, seed=6)


def test_rows_and_defaults():
    one, several = plan(1), edit_plan(1, 2, 3)
    assert (one.rows, several.rows) == (2, 6)
    assert one.source_track == (0,)
    assert not one.edited and several.edited
    assert not several.needs_maps and edit_plan(1, 2, collect=True).needs_maps


def test_held_steps_are_the_whole_ones_also_where_products_round():
    for steps in (1, 3, 10, 30, 50, 1000):
        shares = torch.tensor([whole / steps for whole in range(steps + 1)])
        assert held_steps(shares, steps).tolist() == list(range(steps + 1))
        assert [held_steps(whole / steps, steps) for whole in range(steps + 1)] == list(range(steps + 1))
    assert held_steps(0.33, 10) == 3 == int(held_steps(torch.tensor(0.33), torch.tensor(10)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents": noise(4, SIDE, SIDE)}, r"wanted latents \[tracks, C, h, w\].*got \(4, 8, 8\)"),
        ({"latents": noise(3, 4, SIDE, SIDE)}, r"encoder_hidden_states has shape \(2, .*wanted \(3, "),
        ({"guidance_weights": torch.ones(2, 3)}, r"guidance_weights has shape \(2, 3\), wanted \(2, 2\)"),
        ({"cross": {"token_map": torch.eye(TOKENS)}}, r"token_map has shape \(6, 6\), wanted \(2, 6, 6\)"),
        ({"cross": {"own_weight": torch.ones(2, 5)}}, r"own_weight has shape \(2, 5\), wanted \(2, 6\)"),
        ({"cross": {"own_weight": torch.ones(2, TOKENS, 1)}}, r"own_weight has shape \(2, 6, 1\), wanted"),
        ({"cross": {"own_weight": torch.ones(2, TOKENS).bool()}}, "own_weight is torch.bool, wanted numbers"),
        ({"cross": {"strength": torch.ones(1)}}, r"strength has shape \(1,\), wanted \(2,\)"),
        (
            {"self_attention": SelfEdit(query=INTERVALS[:1])},
            r"query has shape \(1, 7, 2\), wanted \(2, any, 2\)",
        ),
        (
            {"self_attention": SelfEdit(all_rows=torch.ones(2))},
            "all_rows is torch.float32, wanted torch.bool",
        ),
        ({"source_track": (0, 2)}, r"source_track is \(0, 2\), wanted 2 numbers below 2"),
        ({"source_track": (1, 0)}, "a source track can't be edited itself"),
        ({"source_track": (0,)}, "wanted 2 numbers below 2"),
        ({"cross_attention": None}, "an edited track needs cross_attention"),
        ({"noise": noise(3, 4, SIDE, SIDE)}, r"noise has shape .*wanted \(5, 4, 8, 8\) or \(5, 2, 4, 8, 8\)"),
        (
            {"schedule": Schedule.from_scheduler(DDPMScheduler(clip_sample=False), STEPS)},
            "this schedule adds noise at every step: give noise",
        ),
        ({"conditioning": {"channels": noise(2, 1, 4, 4, 4)}}, "conditioning.channels has shape"),
        ({"source_latents": KNOWN[1:]}, r"source_latents has shape \(4, 4, 8, 8\), wanted \(5, 4, 8, 8\)"),
        ({"unconditional_steps": EMPTY[:, 1:]}, "unconditional_steps has shape"),
        ({"source_latents": KNOWN, "source_track": (1, 1)}, "track 0 can't be edited, put its source first"),
        ({"guidance_until": 1.5}, "guidance_until is 1.5"),
        ({"local_blend": blend(grow=-1)}, r"local_blend.grow is \[-1, -1\], wanted 0 to 4 cells"),
        ({"local_blend": blend(grow=5)}, r"local_blend.grow is \[5, 5\], wanted 0 to 4 cells"),
        ({"local_blend": blend(token_weights=torch.ones(1, TOKENS))}, r"token_weights has shape \(1, 6\)"),
        ({"adaptive": adaptive(key_tokens=torch.ones(2, 2).bool())}, r"key_tokens has shape \(2, 2\)"),
        (
            {"adaptive": adaptive(temporal=torch.ones(2, TOKENS))},
            "adaptive.temporal is torch.float32, wanted torch.bool",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, message: str):
    with pytest.raises(PlanError, match=message):
        edit_plan(1, 2, **changes)


def test_empty_prompts_of_each_step_want_a_row_for_them():
    with pytest.raises(PlanError, match="at least two guidance rows"):
        plan(
            1,
            unconditional_steps=EMPTY,
            encoder_hidden_states=noise(1, 1, TOKENS, TEXT),
            guidance_weights=torch.ones(1, 1),
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents": noise(2, 3, SIDE, SIDE)}, "latents have 3 channels and 0 conditioning channels"),
        (
            {"conditioning": {"channels": noise(2, 2, 1, SIDE, SIDE)}},
            "4 channels and 1 conditioning channels, this model takes 4",
        ),
        (
            {"encoder_hidden_states": noise(2, 2, TOKENS, 5)},
            f"encoder_hidden_states are 5 wide, this model wants {TEXT}",
        ),
        ({"cross": {"spatial_map": torch.ones(2, 9)}}, r"spatial_map has shape \(2, 9\), wanted \(2, 64\)"),
        (
            {"self_attention": SelfEdit(key=INTERVALS[:, :3])},
            r"key has shape \(2, 3, 2\), wanted \(2, 7, 2\)",
        ),
        ({"adaptive": adaptive()}, r"self_layers has shape \(2, 0\), wanted \(2, 7\)"),
    ],
)
def test_plans_that_do_not_fit_the_model_are_refused_before_any_work(changes, message: str):
    unet = tiny_unet()
    unet.conv_in.register_forward_pre_hook(lambda *_: pytest.fail("work was begun"))
    with PyTorchRunner(unet, map_divisor=1) as runner, pytest.raises(PlanError, match=message):
        denoise([edit_plan(1, 2, **changes)], runner)


def test_a_model_that_takes_more_channels_wants_them():
    with (
        PyTorchRunner(tiny_unet(in_channels=8), map_divisor=1) as runner,
        pytest.raises(PlanError, match="0 conditioning channels, this model takes 8"),
    ):
        denoise([edit_plan(1, 2)], runner)


def test_a_plan_can_not_be_changed():
    with pytest.raises(AttributeError):
        plan(1).collect = True  # type: ignore[misc]


@pytest.mark.parametrize("name", plans())
def test_tensors_by_their_names_make_the_same_plan(name: str):
    one = plans()[name]
    again = plan(9, schedule=one.schedule, noise=one.noise).with_tensors(
        one.tensors(),
        source_track=one.source_track,
        collect=one.collect,
        record=one.record,
        guidance_until=one.guidance_until,
    )
    assert again.digest() == one.digest()


def test_what_a_first_pass_found_stays_on_the_device_when_plans_are_merged():
    """ "meta" stands in for it; the other plan's lies in host memory."""
    found = edit_plan(1, 3)
    assert found.cross_attention is not None
    cross = replace(found.cross_attention, word_steps=torch.empty(2, TOKENS, device="meta"))
    merged = merge([edit_plan(1, 2), replace(found, cross_attention=cross)])
    assert merged.cross_attention is not None and merged.cross_attention.word_steps.is_meta
    assert merged.cross_attention.token_map.device.type == merged.latents.device.type == "cpu"


def test_digests_tell_plans_apart():
    every = [one.digest() for one in plans().values()]
    assert len(set(every)) == len(every)
    one = plan(1)
    assert replace(one, latents=one.latents + 1e-6).digest() != one.digest()


def test_merged_plans_run_their_source_once_and_part_into_what_they_are_alone():
    """One has a blend, one FWT and DPS in the step, one neither; the tracks that lack a part have none of it."""
    layers = torch.ones(2, 7, dtype=torch.bool)
    apart: list[EditPlan] = [
        edit_plan(1, 2, collect=True, local_blend=blend(threshold=0.6)),
        edit_plan(1, 3, collect=True, adaptive=adaptive(self_layers=layers), cross=TOLD),
        edit_plan(1, 4, collect=True, self_attention=SelfEdit(value=torch.tensor([1, 3]).expand(2, 7, 2))),
    ]
    together = merge(apart)
    assert (together.tracks, together.rows, together.source_track) == (4, 8, (0, 0, 0, 0))
    with PyTorchRunner(tiny_unet(), map_divisor=1) as runner:
        (outcome,) = denoise([together], runner)
        for one, part in zip(apart, split(outcome, apart), strict=True):
            (alone,) = denoise([one], runner)
            assert largest(part.latents, alone.latents) < 1e-4
            assert largest(part.maps, alone.maps) < 1e-5
            assert largest(part.word_steps[1:], alone.word_steps[1:]) < 1e-5


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=4), min_size=1, max_size=4))
def test_merged_tracks_are_those_of_each_plan_and_take_from_where_they_did(kinds: list[list[bool]]):
    """Tracks are edited ones (true), each of the last one before it that is none."""
    apart = []
    for number, edited in enumerate(kinds):
        sources = [0]
        for track, taken in enumerate(edited, start=1):
            sources.append(max(t for t, source in enumerate(sources) if t == source) if taken else track)
        seeds = (1, *(10 * number + track for track in range(2, len(sources) + 1)))
        apart.append(edit_plan(*seeds, source_track=tuple(sources)))
    merged, places = merge(apart), tracks_of(apart)
    assert merged.tracks == 1 + sum(one.tracks - 1 for one in apart)
    assert sorted({place for own in places for place in own}) == list(range(merged.tracks))
    for one, own in zip(apart, places, strict=True):
        assert len(own) == one.tracks and own[0] == 0
        assert [merged.source_track[place] for place in own] == [own[source] for source in one.source_track]
        assert torch.equal(merged.encoder_hidden_states[list(own)], one.encoder_hidden_states)


def test_without_guidance_each_track_has_its_conditional_row():
    alone = edit_plan(1, 2, guidance_until=0.5).without_guidance()
    assert (alone.guidance, alone.rows, alone.guidance_until) == (1, 2, 1.0)
    assert torch.equal(alone.encoder_hidden_states, edit_plan(1, 2).encoder_hidden_states[:, 1:])
    assert isinstance(alone.cross_attention, CrossEdit)
