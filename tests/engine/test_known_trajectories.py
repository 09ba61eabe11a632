"""Plans that know where their source goes, whose empty prompt changes from step to step, or that keep every latent."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from adapedit_engine import LocalBlend, PlanError, PyTorchRunner, denoise
from adapedit_engine.scheduler import CachedRunner
from adapedit_engine.scheduler.memory import plan_bytes
from tests.engine.tiny import (
    SIDE,
    STEPS,
    TEXT,
    TOKENS,
    ddim,
    edit_plan,
    largest,
    noise,
    plan,
    there,
    tiny_unet,
)


@pytest.fixture(scope="module")
def runner():
    with PyTorchRunner(tiny_unet(), map_divisor=1) as opened:
        yield opened


def known(seed: int = 5) -> torch.Tensor:
    return noise(STEPS, 4, SIDE, SIDE, seed=seed)


def empty_prompts(seed: int = 6, steps: int = STEPS) -> torch.Tensor:
    return noise(steps, TOKENS, TEXT, seed=seed)


def test_a_recorded_trajectory_is_every_step_and_ends_where_the_edit_does(runner):
    (short,), (long,) = (denoise([each], runner) for each in (plan(1), plan(1, record=True)))
    assert short.trajectory is None
    steps = there(long.trajectory)
    assert steps.shape == (STEPS, 1, 4, SIDE, SIDE)
    assert torch.equal(steps[-1], long.latents) and torch.equal(long.latents, short.latents)
    # Each is what one step makes of the one before.
    tail = plan(1, latents=steps[2], schedule=ddim().tail(3))
    assert largest(denoise([tail], runner)[0].latents, steps[-1]) < 1e-5


def test_the_source_goes_where_it_is_told_and_its_target_sees_it_there(runner):
    (told,) = denoise([edit_plan(1, 2, source_latents=known(), record=True)], runner)
    assert torch.equal(there(told.trajectory)[:, 0], known())
    (free,) = denoise([edit_plan(1, 2)], runner)
    assert largest(told.latents[1], free.latents[1]) > 1e-3

    # Told to go where it would go anyway, it changes nothing.
    (own,) = denoise([plan(1, record=True)], runner)
    (same,) = denoise([edit_plan(1, 2, source_latents=there(own.trajectory)[:, 0])], runner)
    assert largest(same.latents, free.latents) < 1e-4


def test_a_local_blend_keeps_what_the_source_was_told(runner):
    words = torch.zeros(2, TOKENS)
    words[:, 1] = 1
    nowhere = LocalBlend(token_weights=words, threshold=1.0, start=0.0)
    (outcome,) = denoise([edit_plan(1, 2, source_latents=known(), local_blend=nowhere)], runner)
    assert torch.equal(outcome.latents[0], known()[-1]) and torch.equal(outcome.latents[1], known()[-1])


def test_known_latents_go_with_a_schedule_that_adds_noise(runner):
    noisy = replace(ddim(), noise_weight=torch.full((STEPS,), 0.3, dtype=torch.float64))
    drawn = noise(STEPS, 4, SIDE, SIDE, seed=8)
    (free,) = denoise([plan(1, 2, schedule=noisy, noise=drawn)], runner)
    (told,) = denoise([plan(1, 2, schedule=noisy, noise=drawn, source_latents=known())], runner)
    assert torch.equal(told.latents[0], known()[-1]) and torch.equal(told.latents[1], free.latents[1])
    assert torch.equal(drawn, noise(STEPS, 4, SIDE, SIDE, seed=8))


def test_empty_prompts_of_each_step_are_used_at_their_step(runner):
    fixed = plan(1, 2)
    constant = fixed.encoder_hidden_states[0, 0].expand(STEPS, -1, -1)
    (expected,) = denoise([fixed], runner)
    (got,) = denoise([replace(fixed, unconditional_steps=constant)], runner)
    assert torch.equal(expected.latents, got.latents)

    changed = constant.clone()
    changed[-1] = empty_prompts()[0]
    (last,) = denoise([replace(fixed, unconditional_steps=changed, record=True)], runner)
    (before,) = denoise([replace(fixed, record=True)], runner)
    assert torch.equal(there(last.trajectory)[-2], there(before.trajectory)[-2])
    assert largest(last.latents, expected.latents) > 1e-4

    # Step by step: a plan of one step with that step's empty prompt.
    (whole,) = denoise([replace(fixed, unconditional_steps=empty_prompts(), record=True)], runner)
    text = fixed.encoder_hidden_states.clone()
    text[:, 0] = empty_prompts()[-1]
    alone = plan(
        1, 2, schedule=ddim().tail(STEPS - 1), latents=there(whole.trajectory)[-2], encoder_hidden_states=text
    )
    assert largest(denoise([alone], runner)[0].latents, whole.latents) < 1e-5


def test_unrelated_edits_in_one_batch_leave_each_other_alone():
    plans = [
        edit_plan(1, 2, unconditional_steps=empty_prompts(), source_latents=known()),
        plan(3, schedule=ddim(STEPS + 2)),
        plan(4, unconditional_steps=empty_prompts(9, 3), schedule=ddim(3), record=True),
        edit_plan(5, 6, source_latents=known(11)),
    ]
    with PyTorchRunner(tiny_unet(), map_divisor=1) as plain:
        cached = CachedRunner(plain, 2**20)
        together = denoise(plans, cached)
        for each, outcome in zip(plans, together, strict=True):
            (alone,) = denoise([each], plain)
            assert largest(alone.latents, outcome.latents) < 1e-5 * float(alone.latents.abs().max())


def test_guidance_that_ends_early_ends_the_empty_prompts_too(runner):
    (early,) = denoise([plan(1, unconditional_steps=empty_prompts(), guidance_until=0.0)], runner)
    (never,) = denoise([plan(1, guidance_until=0.0)], runner)
    assert torch.equal(early.latents, never.latents)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source_latents": known()[1:]}, r"source_latents has shape \(4, 4, 8, 8\), wanted \(5, 4, 8, 8\)"),
        ({"unconditional_steps": empty_prompts()[:, 1:]}, "unconditional_steps has shape"),
    ],
)
def test_wrong_shapes_are_refused(changes, message):
    with pytest.raises(PlanError, match=message):
        plan(1, **changes)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(PlanError, match="at least two guidance rows"):
        plan(
            1,
            unconditional_steps=empty_prompts(),
            encoder_hidden_states=noise(1, 1, TOKENS, TEXT),
            guidance_weights=torch.ones(1, 1),
        )
    with pytest.raises(PlanError, match="takes maps from another track"):
        edit_plan(1, 2, source_latents=known(), source_track=(1, 1))


def test_they_count_as_memory(runner):
    less = plan_bytes(plan(1), runner)
    for changes in ({"source_latents": known()}, {"record": True}, {"unconditional_steps": empty_prompts()}):
        assert plan_bytes(plan(1, **changes), runner) > less
