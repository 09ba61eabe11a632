"""A step is what the method says: diffusers' own loop, Prompt-to-Prompt written out, and the limits between."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
)

from adapedit_engine.models.controls import Controls
from adapedit_engine.plan import SelfEdit
from adapedit_engine.runners.pytorch import PyTorchRunner
from adapedit_engine.schedule import Schedule
from adapedit_engine.scheduler import denoise
from tests.engine import slow
from tests.engine.tiny import (
    GUIDANCE,
    SIDE,
    STEPS,
    TEXT,
    TOKENS,
    blend,
    ddim,
    edit_plan,
    largest,
    noise,
    plan,
    self_interval,
    tiny_unet,
)

CLOSE = 2e-4  # of latents that are of order 1 to 10, after all steps


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    return tiny_unet()


@pytest.fixture(scope="module")
def runner(unet: UNet2DConditionModel) -> Iterator[PyTorchRunner]:
    with PyTorchRunner(unet, map_divisor=1) as opened:
        yield opened


def shared_self(unet: UNet2DConditionModel, share: float = 0.4, tracks: int = 2) -> SelfEdit:
    taken = self_interval(unet, share, tracks)
    return SelfEdit(query=taken, key=taken)


@pytest.mark.parametrize(
    "scheduler",
    [EulerDiscreteScheduler(), EulerAncestralDiscreteScheduler(), DDPMScheduler(clip_sample=False)],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_plain_generation_is_the_diffusers_loop(unet, runner, scheduler):
    """With input scaling and with noise; each track its own."""
    schedule = Schedule.from_scheduler(scheduler, STEPS)
    start = noise(2, 4, SIDE, SIDE, seed=3) * schedule.init_noise_sigma
    drawn = noise(STEPS, 2, 4, SIDE, SIDE, seed=4)
    (outcome,) = denoise([plan(1, 2, schedule=schedule, latents=start, noise=drawn)], runner)
    scheduler.set_timesteps(STEPS)
    latents, text = start, plan(1, 2).encoder_hidden_states
    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    for index, timestep in enumerate(scheduler.timesteps):
        rows = scheduler.scale_model_input(latents, timestep)
        with torch.no_grad():
            empty, worded = unet(rows, timestep, text[:, 0]).sample, unet(rows, timestep, text[:, 1]).sample
        with pytest.MonkeyPatch.context() as patch:
            if hasattr(module, "randn_tensor"):  # our noise in place of its own
                patch.setattr(module, "randn_tensor", lambda *_, index=index, **__: drawn[index])
            guided = empty + GUIDANCE * (worded - empty)
            latents = scheduler.step(guided, timestep, latents).prev_sample
    assert largest(outcome.latents, latents) < 3e-5 * float(latents.abs().max())


@pytest.mark.parametrize("kind", ["dpmsolver++", "sde-dpmsolver++"])
def test_a_solver_that_looks_back_is_written_out(unet, runner, kind: str):
    """What a step leaves to the next is added there, beside fresh noise where the solver wants it."""
    schedule = Schedule.from_scheduler(DPMSolverMultistepScheduler(algorithm_type=kind), STEPS)
    drawn = noise(STEPS, 4, SIDE, SIDE, seed=4) if schedule.stochastic else None
    one = plan(1, 2, schedule=schedule, noise=drawn)
    (outcome,) = denoise([one], runner)
    latents, text, kept = one.latents, one.encoder_hidden_states, torch.zeros(())
    assert schedule.history_sample_weight is not None and schedule.history_output_weight is not None
    for i in range(STEPS):
        with torch.no_grad():
            empty, worded = (unet(latents, schedule.timesteps[i], text[:, row]).sample for row in (0, 1))
        guided, before = empty + GUIDANCE * (worded - empty), latents
        latents = float(schedule.sample_weight[i]) * before + float(schedule.output_weight[i]) * guided + kept
        if drawn is not None:
            latents = latents + float(schedule.noise_weight[i]) * drawn[i]
        kept = float(schedule.history_sample_weight[i]) * before
        kept = kept + float(schedule.history_output_weight[i]) * guided
    assert largest(outcome.latents, latents) < 3e-5 * float(latents.abs().max())


def test_noise_shared_by_the_tracks(runner):
    schedule = Schedule.from_scheduler(DDPMScheduler(clip_sample=False), STEPS)
    drawn = noise(STEPS, 4, SIDE, SIDE, seed=4)
    (shared,) = denoise([plan(1, 1, schedule=schedule, noise=drawn)], runner)
    (each,) = denoise([plan(1, 1, schedule=schedule, noise=drawn[:, None].repeat(1, 2, 1, 1, 1))], runner)
    assert torch.equal(shared.latents, each.latents)
    assert largest(shared.latents[0], shared.latents[1]) < 1e-5


@pytest.mark.parametrize(("cross_share", "self_part"), [(0.6, 0.4), (1.0, 0.2), (0.0, 0.6)])
def test_everywhere_full_strength_one_tau_is_prompt_to_prompt(cross_share: float, self_part: float):
    unet, token_map, own = tiny_unet(), torch.eye(TOKENS), torch.zeros(TOKENS)
    token_map[1], token_map[2] = token_map[2].clone(), token_map[1].clone()
    token_map[4, 5], own[3] = 0.5, 1
    edit = {"token_map": token_map.repeat(2, 1, 1), "own_weight": own.repeat(2, 1)}
    shared = shared_self(unet, self_part)
    edited = edit_plan(1, 2, word_steps=cross_share, cross=edit, self_attention=shared)
    with PyTorchRunner(unet, map_divisor=1) as runner:
        (outcome,) = denoise([edited], runner)
    expected = slow.prompt_to_prompt(
        unet,
        DDIMScheduler(clip_sample=False),
        edited.latents[:1],
        edited.encoder_hidden_states.transpose(0, 1).flatten(0, 1),
        guidance_scale=GUIDANCE,
        token_map=token_map,
        own=own,
        cross_share=cross_share,
        self_share=self_part,
        largest_self=(SIDE // 2) ** 2,
        steps=STEPS,
    )
    assert largest(outcome.latents, expected) < CLOSE
    assert largest(outcome.latents[0], outcome.latents[1]) > 0.05


def test_source_is_the_plain_generation_bit_for_bit(unet, runner):
    edited = edit_plan(1, 2, collect=True, self_attention=shared_self(unet))
    with_maps, without = denoise([edited], runner)[0], denoise([replace(edited, collect=False)], runner)[0]
    (alone,) = denoise([plan(1, 2)], runner)
    assert torch.equal(with_maps.latents[0], alone.latents[0])
    assert torch.equal(with_maps.latents, without.latents)
    assert not torch.equal(with_maps.latents[1], alone.latents[1])


def test_tau_of_one_uses_the_sources_maps_at_every_step(unet, runner):
    """Then the target's own maps, its strength and its spatial map have no say."""
    nothing_own = {"own_weight": torch.zeros(2, TOKENS)}
    everything = edit_plan(1, 2, word_steps=1.0, cross=nothing_own)
    weaker = {"strength": torch.tensor([1.0, 0.3]), "spatial_map": noise(2, SIDE**2).sigmoid()}
    other = edit_plan(1, 2, word_steps=1.0, cross={**nothing_own, **weaker})
    first, second = denoise([everything], runner), denoise([other], runner)
    assert largest(first[0].latents, second[0].latents) < 1e-4

    def change(maps: torch.Tensor, cross: bool, name: str) -> torch.Tensor:
        return torch.stack([maps[0], maps[1], maps[2], maps[1]]) if cross else maps

    latents, schedule = everything.latents, everything.schedule
    with slow.slow_attention(unet, change), torch.no_grad():
        for i in range(STEPS):
            rows, text = latents.repeat_interleave(2, 0), everything.encoder_hidden_states.flatten(0, 1)
            predicted = unet(rows, schedule.timesteps[i], text).sample
            guided = (1 - GUIDANCE) * predicted[0::2] + GUIDANCE * predicted[1::2]
            latents = float(schedule.sample_weight[i]) * latents + float(schedule.output_weight[i]) * guided
    assert largest(first[0].latents, latents) < CLOSE


@pytest.mark.parametrize("word_steps", [0.0, 0.5, 1.0])
def test_identical_prompts_give_identical_tracks(unet, runner, word_steps):
    edited = edit_plan(1, 1, word_steps=word_steps, self_attention=shared_self(unet))
    (outcome,) = denoise([edited], runner)
    assert largest(outcome.latents[0], outcome.latents[1]) < 2e-4  # latents grow to 40


def test_edits_of_one_source_equal_separate_edits(unet, runner):
    shared = shared_self(unet, tracks=4)
    (outcome,) = denoise([edit_plan(1, 2, 3, 4, self_attention=shared, collect=True)], runner)
    for track, seed in enumerate((2, 3, 4), start=1):
        (alone,) = denoise([edit_plan(1, seed, collect=True, self_attention=shared_self(unet))], runner)
        part = outcome.select([0, track])
        assert largest(part.latents, alone.latents) < 1e-4
        assert largest(part.maps, alone.maps) < 1e-5
        assert largest(part.features, alone.features) < 1e-4


def test_every_row_has_its_own_timestep(runner):
    sample, text = noise(3, 4, SIDE, SIDE), noise(3, TOKENS, TEXT, seed=1)
    timesteps = torch.tensor([900.0, 3.0, 451.0])
    together = runner.controlled(sample, timesteps, text).noise_pred
    for row in range(3):
        one = slice(row, row + 1)
        alone = runner.controlled(sample[one], timesteps[one], text[one]).noise_pred
        assert largest(together[one], alone) < 1e-5
    assert largest(together[1], runner.controlled(sample, timesteps.flip(0), text).noise_pred[0]) > 1e-3


def test_a_row_does_not_see_what_others_take(runner):
    """An unedited row is the same, bit for bit, whether its neighbours are edited or not."""
    sample, text, timestep = noise(4, 4, SIDE, SIDE), noise(4, TOKENS, TEXT, seed=1), torch.full((4,), 500.0)
    plain = runner.controlled(sample, timestep, text).noise_pred
    layers = len(runner.specs.self_layers)
    identity = Controls.identity(batch=4, tokens=TOKENS, pixels=SIDE**2, layers=layers)
    edited = replace(
        identity,
        source_row=torch.tensor([0, 1, 2, 1]),
        self_key_row=torch.tensor([0, 1, 2, 0]).expand(layers, 4),
    )
    assert torch.equal(runner.controlled(sample, timestep, text, identity).noise_pred, plain)
    result = runner.controlled(sample, timestep, text, edited).noise_pred
    assert torch.equal(result[:3], plain[:3])
    assert largest(result[3], plain[3]) > 1e-3


# -- known trajectories, changing prompts, guidance that ends


KNOWN, EMPTY = noise(STEPS, 4, SIDE, SIDE, seed=5), noise(STEPS, TOKENS, TEXT, seed=6)


def test_a_recorded_trajectory_is_every_step_and_ends_where_the_edit_does(runner):
    (short,), (long,) = (denoise([each], runner) for each in (plan(1), plan(1, record=True)))
    assert short.trajectory is None
    assert long.trajectory.shape == (STEPS, 1, 4, SIDE, SIDE)
    assert torch.equal(long.trajectory[-1], long.latents) and torch.equal(long.latents, short.latents)
    # Each is what one step makes of the one before.
    tail = plan(1, latents=long.trajectory[2], schedule=ddim().tail(3))
    assert largest(denoise([tail], runner)[0].latents, long.latents) < 1e-5


def test_the_source_goes_where_it_is_told_and_its_target_sees_it_there(runner):
    (told,) = denoise([edit_plan(1, 2, source_latents=KNOWN, record=True)], runner)
    assert torch.equal(told.trajectory[:, 0], KNOWN)
    (free,) = denoise([edit_plan(1, 2)], runner)
    assert largest(told.latents[1], free.latents[1]) > 1e-3
    # Told to go where it would go anyway, it changes nothing.
    (own,) = denoise([plan(1, record=True)], runner)
    (same,) = denoise([edit_plan(1, 2, source_latents=own.trajectory[:, 0])], runner)
    assert largest(same.latents, free.latents) < 1e-4


def test_a_local_blend_keeps_what_the_source_was_told(runner):
    nowhere = blend(threshold=1.0, start=0.0)
    (outcome,) = denoise([edit_plan(1, 2, source_latents=KNOWN, local_blend=nowhere)], runner)
    assert torch.equal(outcome.latents[0], KNOWN[-1]) and torch.equal(outcome.latents[1], KNOWN[-1])


def test_known_latents_go_with_a_schedule_that_adds_noise(runner):
    noisy = replace(ddim(), noise_weight=torch.full((STEPS,), 0.3, dtype=torch.float64))
    drawn = noise(STEPS, 4, SIDE, SIDE, seed=8)
    (free,) = denoise([plan(1, 2, schedule=noisy, noise=drawn)], runner)
    (told,) = denoise([plan(1, 2, schedule=noisy, noise=drawn, source_latents=KNOWN)], runner)
    assert torch.equal(told.latents[0], KNOWN[-1]) and torch.equal(told.latents[1], free.latents[1])
    assert torch.equal(drawn, noise(STEPS, 4, SIDE, SIDE, seed=8))


def test_empty_prompts_of_each_step_are_used_at_their_step(runner):
    fixed = plan(1, 2)
    constant = fixed.encoder_hidden_states[0, 0].expand(STEPS, -1, -1)
    (expected,) = denoise([fixed], runner)
    (got,) = denoise([replace(fixed, unconditional_steps=constant)], runner)
    assert torch.equal(expected.latents, got.latents)
    # Step by step: a plan of one step with that step's empty prompt.
    (whole,) = denoise([replace(fixed, unconditional_steps=EMPTY, record=True)], runner)
    text = fixed.encoder_hidden_states.clone()
    text[:, 0] = EMPTY[-1]
    last = ddim().tail(STEPS - 1)
    alone = plan(1, 2, schedule=last, latents=whole.trajectory[-2], encoder_hidden_states=text)
    assert largest(denoise([alone], runner)[0].latents, whole.latents) < 1e-5


def test_guidance_that_ends_early_is_two_trajectories(runner):
    """Two steps of guidance and three without, against the same made of two plans."""
    (mixed,) = denoise([plan(5, guidance_until=0.4)], runner)
    schedule = plan(5).schedule
    names = ("timesteps", "input_scale", "sample_weight", "output_weight", "noise_weight")

    def part(first: int, last: int, start: torch.Tensor, weight: float):
        cut = {name: getattr(schedule, name)[first:last] for name in names}
        cut["levels"] = schedule.levels[first : last + 1]
        weights = torch.tensor([[1 - weight, weight]])
        return replace(plan(5), schedule=replace(schedule, **cut), latents=start, guidance_weights=weights)

    (first,) = denoise([part(0, 2, plan(5).latents, GUIDANCE)], runner)
    (second,) = denoise([part(2, STEPS, first.latents, 1.0)], runner)
    assert largest(mixed.latents, second.latents) < 1e-4
    (early,) = denoise([plan(1, unconditional_steps=EMPTY, guidance_until=0.0)], runner)
    (never,) = denoise([plan(1, guidance_until=0.0)], runner)
    assert torch.equal(early.latents, never.latents)
