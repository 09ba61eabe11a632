"""The loop: local blend, the single pass, noise, grouping, progress, and that it neither waits nor mutates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler

from adapedit_engine import (
    Controls,
    EditPlan,
    Found,
    Layout,
    LocalBlend,
    PyTorchRunner,
    Schedule,
    begin,
    denoise,
    observe,
    outcome,
    tick,
)
from tests.engine.tiny import (
    GUIDANCE,
    SIDE,
    STEPS,
    TEXT,
    TOKENS,
    adaptive,
    ddim,
    edit_plan,
    key_tokens,
    largest,
    noise,
    plan,
    self_share,
    there,
    tiny_unet,
)


@pytest.fixture(scope="module")
def unet():
    return tiny_unet()


@pytest.fixture(scope="module")
def runner(unet):
    with PyTorchRunner(unet, map_divisor=1) as opened:
        yield opened


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

    class Drawn:  # hands the scheduler our noise in place of its own
        index = 0

    scheduler.set_timesteps(STEPS)
    latents, text = start, plan(1, 2).encoder_hidden_states
    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    for index, timestep in enumerate(scheduler.timesteps):
        Drawn.index = index
        rows = scheduler.scale_model_input(latents, timestep)
        with torch.no_grad():
            empty, worded = unet(rows, timestep, text[:, 0]).sample, unet(rows, timestep, text[:, 1]).sample
        with pytest.MonkeyPatch.context() as patch:
            if hasattr(module, "randn_tensor"):
                patch.setattr(module, "randn_tensor", lambda *_, **__: drawn[Drawn.index])
            guided = empty + GUIDANCE * (worded - empty)
            latents = scheduler.step(guided, timestep, latents).prev_sample
    assert largest(outcome.latents, latents) < 3e-5 * float(latents.abs().max())


def test_noise_shared_by_the_tracks(runner):
    schedule = Schedule.from_scheduler(DDPMScheduler(clip_sample=False), STEPS)
    drawn = noise(STEPS, 4, SIDE, SIDE, seed=4)
    (shared,) = denoise([plan(1, 1, schedule=schedule, noise=drawn)], runner)
    (each,) = denoise([plan(1, 1, schedule=schedule, noise=drawn[:, None].repeat(1, 2, 1, 1, 1))], runner)
    assert torch.equal(shared.latents, each.latents)
    assert largest(shared.latents[0], shared.latents[1]) < 1e-5
    noiseless, together = denoise([plan(1), plan(1, 1, schedule=schedule, noise=drawn)], runner)
    assert largest(together.latents, shared.latents) < 1e-4
    assert largest(noiseless.latents, denoise([plan(1)], runner)[0].latents) < 1e-4


def slow_mask(maps: torch.Tensor, weights: torch.Tensor, threshold: float) -> torch.Tensor:
    """Pixel by pixel: maximum over 3 x 3 of the chosen words' maps, share of the peak."""
    heat = (maps * weights).sum(-1).reshape(SIDE, SIDE)
    spread = torch.stack(
        [
            torch.stack([heat[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].max() for x in range(SIDE)])
            for y in range(SIDE)
        ]
    )
    return spread / spread.max() > threshold


def test_local_blend_keeps_the_source_outside_the_words(runner):
    weights = key_tokens().float()
    weights[0, 1] = 1
    blend = LocalBlend(token_weights=weights, threshold=0.8, start=0.4)
    edited = edit_plan(1, 2, local_blend=blend, collect=True)
    states, free = [begin(edited, runner)], [begin(replace(edited, local_blend=None), runner)]
    for step in range(STEPS):
        free = [replace(free[0], latents=states[0].latents, step_index=step)]
        free, states = tick(free, runner), tick(states, runner)
        own, unblended = states[0].latents, free[0].latents
        assert torch.equal(own[0], unblended[0])
        if step < 2:
            assert torch.equal(own, unblended)
            continue
        maps = there(states[0].map_sum)
        mask = slow_mask(maps[0], weights[0], 0.8) | slow_mask(maps[1], weights[1], 0.8)
        assert 0 < mask.float().mean() < 1
        expected = torch.where(mask, unblended[1], unblended[0])
        assert largest(own[1], expected) < 1e-5


def test_the_single_pass_recomputes_from_what_it_has_seen(unet, runner):
    """By hand: before every step tau and S from the averages so far, as a plan of their own."""
    layers = torch.ones(len(runner.specs.self_layers), 2, dtype=torch.bool)
    edited = edit_plan(1, 2, adaptive=adaptive(self_layers=layers), strength=torch.tensor([1.0, 0.8]))
    (single,) = denoise([edited], runner)

    latents = edited.latents
    found: Found | None = None
    maps = features = torch.zeros(())
    for step in range(STEPS):
        here = replace(edited, adaptive=None, collect=True)
        if found is not None:
            early = step < found.self_share * STEPS
            table = (early & layers).expand(STEPS, -1, -1)
            here = replace(
                here,
                word_steps=found.word_steps,
                spatial_map=found.spatial_map,
                self_query=table,
                self_key=table,
            )
        state = replace(begin(here, runner), latents=latents, step_index=step)
        (state,) = tick([state], runner)
        latents, maps, features = (
            state.latents,
            maps + there(state.map_sum),
            features + there(state.feature_sum),
        )
        found = observe(maps / (step + 1), features / (step + 1), adaptive(), torch.tensor([0, 0]))
    assert largest(single.latents, latents) < 1e-4
    assert largest(there(single.word_steps), there(found).word_steps) < 1e-5
    assert largest(there(single.spatial_map), there(found).spatial_map) < 1e-4
    steps = there(single.word_steps)[1]
    assert steps[2] == 0
    assert steps[3] == steps[4] > 0


def test_parts_of_the_single_pass_may_be_off(runner):
    spatial = noise(2, SIDE**2).sigmoid()
    neither = edit_plan(1, 2, adaptive=adaptive(temporal=False, spatial=False), spatial_map=spatial)
    (outcome,) = denoise([neither], runner)
    (plain,) = denoise([replace(neither, adaptive=None)], runner)
    assert torch.equal(outcome.latents, plain.latents)
    assert torch.equal(there(outcome.word_steps), there(neither.word_steps))
    assert torch.equal(there(outcome.spatial_map), spatial)
    rarely = edit_plan(1, 2, adaptive=adaptive(update_every=STEPS))
    (late,) = denoise([rarely], runner)
    assert torch.equal(late.latents, denoise([replace(rarely, adaptive=None)], runner)[0].latents)
    assert not torch.equal(there(late.word_steps), there(rarely.word_steps))


def test_conditioning_channels_for_models_with_more_inputs_than_outputs():
    """InstructPix2Pix: eight input channels, three guidance rows, of which one does not see the picture."""
    unet = tiny_unet(in_channels=8)
    extra = torch.stack([torch.zeros(4, SIDE, SIDE), noise(4, SIDE, SIDE), noise(4, SIDE, SIDE)])[None]
    text, weights = noise(1, 3, TOKENS, TEXT, seed=1), torch.tensor([[-0.5, -1.0, 2.5]])
    one = plan(1, encoder_hidden_states=text, guidance_weights=weights, conditioning_channels=extra)
    with PyTorchRunner(unet, map_divisor=1) as runner:
        (outcome,) = denoise([one], runner)
    latents, schedule = one.latents, one.schedule
    for i in range(STEPS):
        sample = torch.cat([latents.repeat(3, 1, 1, 1), extra[0]], dim=1)
        with torch.no_grad():
            rows = unet(sample, schedule.timesteps[i], text[0]).sample
        guided = (weights[0].reshape(3, 1, 1, 1) * rows).sum(0, keepdim=True)
        latents = float(schedule.sample_weight[i]) * latents + float(schedule.output_weight[i]) * guided
    assert largest(outcome.latents, latents) < 1e-4


def mixed(unet) -> list[EditPlan]:
    table = self_share(unet, 0.5)
    return [
        edit_plan(1, 2, self_query=table, self_key=table, adaptive=adaptive(), collect=True),
        edit_plan(3, 4, local_blend=LocalBlend(token_weights=key_tokens().float(), start=0.0)),
        plan(5, schedule=Schedule.from_scheduler(EulerDiscreteScheduler(), STEPS)),
    ]


def test_nothing_waits_for_the_device_inside_a_tick(unet, runner, monkeypatch):
    """No value of a tensor is read: on a GPU each of these would wait."""
    states = [begin(one, runner) for one in mixed(unet)]
    layout = Layout.of([state.tables for state in states], runner)
    states = tick(states, runner, layout)
    # The runner's own check of row numbers reads values, of tensors in host memory alone.
    monkeypatch.setattr(Controls, "validate", lambda *_, **__: None)

    def read(*_: object, **__: object) -> None:
        raise AssertionError("a tensor's value was read")

    for name in (
        "item",
        "tolist",
        "numpy",
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
        "cpu",
        "nonzero",
    ):
        monkeypatch.setattr(torch.Tensor, name, read)
    states = tick(states, runner, layout)
    monkeypatch.undo()
    assert all(state.step_index == 2 for state in states)


def test_a_tick_leaves_old_states_as_they_were(unet, runner):
    states = [begin(one, runner) for one in mixed(unet)]
    states = tick(states, runner)
    before = [
        (state.latents.clone(), None if state.map_sum is None else state.map_sum.clone()) for state in states
    ]
    once, again = tick(states, runner), tick(states, runner)
    for state, (latents, map_sum) in zip(states, before, strict=True):
        assert state.step_index == 1
        assert torch.equal(state.latents, latents)
        assert map_sum is None or torch.equal(there(state.map_sum), map_sum)
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(once, again, strict=True))


def test_the_plan_is_not_changed_by_running_it(runner):
    one = edit_plan(1, 2, adaptive=adaptive(), collect=True)
    tensors = {name: value.clone() for name, value in vars(one).items() if isinstance(value, torch.Tensor)}
    denoise([one], runner)
    assert all(torch.equal(getattr(one, name), value) for name, value in tensors.items())


def test_edits_may_join_and_leave_between_ticks(runner):
    """Each at its own step: the result is that of running alone."""
    first, second = edit_plan(1, 2), plan(3, schedule=ddim(3), latents_seed=2)
    states = [begin(first, runner)]
    states = tick(tick(states, runner), runner)
    states.append(begin(second, runner))
    ended = {}
    while states:
        states = tick(states, runner)
        ended.update({id(state.plan): outcome(state) for state in states if state.done})
        states = [state for state in states if not state.done]
    for one in (first, second):
        assert largest(ended[id(one)].latents, denoise([one], runner)[0].latents) < 1e-4
