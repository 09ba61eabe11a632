"""What must hold exactly or to rounding: the limits of the method and the independence of the rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from adapedit_engine import Controls, EditPlan, PyTorchRunner, denoise
from tests.engine import slow
from tests.engine.tiny import (
    GUIDANCE,
    SIDE,
    STEPS,
    TEXT,
    TOKENS,
    ddim,
    edit_plan,
    largest,
    noise,
    plan,
    self_share,
    there,
    tiny_unet,
)

CLOSE = 2e-4  # of latents that are of order 1 to 10, after all steps


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    return tiny_unet()


@pytest.fixture(scope="module")
def runner(unet: UNet2DConditionModel):
    with PyTorchRunner(unet, map_divisor=1) as opened:
        yield opened


def shared_self(unet: UNet2DConditionModel, share: float = 0.4, tracks: int = 2) -> dict[str, torch.Tensor]:
    table = self_share(unet, share, tracks)
    return {"self_query": table, "self_key": table}


@pytest.mark.parametrize(("cross_share", "self_part"), [(0.6, 0.4), (1.0, 0.2), (0.0, 0.6)])
def test_everywhere_full_strength_one_tau_is_prompt_to_prompt(cross_share: float, self_part: float):
    unet = tiny_unet()
    token_map = torch.eye(TOKENS)
    token_map[1], token_map[2] = token_map[2].clone(), token_map[1].clone()
    token_map[4, 5] = 0.5
    own = torch.zeros(TOKENS)
    own[3] = 1
    edited = edit_plan(
        1,
        2,
        word_steps=cross_share,
        token_map=token_map.repeat(2, 1, 1),
        own_weight=own.repeat(2, 1),
        **shared_self(unet, self_part),
    )
    with PyTorchRunner(unet, map_divisor=1) as runner:
        (outcome,) = denoise([edited], runner)
    text = edited.encoder_hidden_states.transpose(0, 1).flatten(0, 1)
    expected = slow.prompt_to_prompt(
        unet,
        DDIMScheduler(clip_sample=False),
        edited.latents[:1],
        text,
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
    edited = edit_plan(1, 2, collect=True, **shared_self(unet))
    with_maps, without = denoise([edited], runner)[0], denoise([replace(edited, collect=False)], runner)[0]
    (alone,) = denoise([plan(1, 2)], runner)
    assert torch.equal(with_maps.latents[0], alone.latents[0])
    assert torch.equal(with_maps.latents, without.latents)
    assert not torch.equal(with_maps.latents[1], alone.latents[1])


def test_tau_of_one_uses_the_sources_maps_at_every_step(unet, runner):
    """Then the target's own maps, its strength and its spatial map have no say."""
    everything = edit_plan(1, 2, word_steps=1.0, own_weight=torch.zeros(2, TOKENS))
    other = replace(everything, strength=torch.tensor([1.0, 0.3]), spatial_map=noise(2, SIDE**2).sigmoid())
    first, second = denoise([everything], runner), denoise([other], runner)
    assert torch.equal(first[0].latents, second[0].latents)

    source_maps: dict[str, torch.Tensor] = {}

    def change(maps: torch.Tensor, cross: bool, name: str) -> torch.Tensor:
        if not cross:
            return maps
        source_maps[name] = maps[1]
        return torch.stack([maps[0], maps[1], maps[2], maps[1]])

    latents = everything.latents
    schedule = everything.schedule
    with slow.slow_attention(unet, change), torch.no_grad():
        for i in range(STEPS):
            rows = latents.repeat_interleave(2, 0)
            predicted = unet(
                rows, schedule.timesteps[i], everything.encoder_hidden_states.flatten(0, 1)
            ).sample
            guided = (1 - GUIDANCE) * predicted[0::2] + GUIDANCE * predicted[1::2]
            latents = float(schedule.sample_weight[i]) * latents + float(schedule.output_weight[i]) * guided
    assert largest(first[0].latents, latents) < CLOSE
    assert source_maps


def test_identical_prompts_give_identical_tracks(unet, runner):
    for word_steps in (0.0, 0.5, 1.0):
        edited = edit_plan(1, 1, word_steps=word_steps, **shared_self(unet))
        (outcome,) = denoise([edited], runner)
        assert largest(outcome.latents[0], outcome.latents[1]) < 1e-5


def test_edits_of_one_source_equal_separate_edits(unet, runner):
    table = self_share(unet, 0.4, tracks=4)
    together = edit_plan(1, 2, 3, 4, self_query=table, self_key=table, collect=True)
    (outcome,) = denoise([together], runner)
    for track, seed in enumerate((2, 3, 4), start=1):
        (alone,) = denoise([edit_plan(1, seed, collect=True, **shared_self(unet))], runner)
        assert largest(outcome.latents[[0, track]], alone.latents) < 1e-4
        assert largest(there(outcome.maps)[[0, track]], there(alone.maps)) < 1e-5
        assert largest(there(outcome.features)[[0, track]], there(alone.features)) < 1e-4


def unrelated(unet: UNet2DConditionModel) -> list[EditPlan]:
    """Different prompts, seeds, steps, tracks and guidance rows; plain, edited, with shared self-attention."""
    short, long = ddim(3), ddim(6)
    three = noise(2, 3, TOKENS, TEXT, seed=40)
    return [
        edit_plan(1, 2, collect=True, **shared_self(unet)),
        plan(3, schedule=short, latents_seed=1),
        edit_plan(4, 5, 6, schedule=long, latents_seed=2, strength=torch.tensor([1.0, 0.5, 0.9])),
        plan(
            1,
            2,
            encoder_hidden_states=three,
            guidance_weights=torch.tensor([[-1.0, 0.5, 1.5]] * 2),
            latents_seed=3,
            collect=True,
        ),
        plan(6, encoder_hidden_states=noise(1, 1, TOKENS, TEXT, seed=6), guidance_weights=torch.ones(1, 1)),
    ]


@pytest.mark.parametrize("max_rows", [None, 8, 10])
def test_an_edit_among_unrelated_edits_equals_the_edit_alone(unet, runner, max_rows: int | None):
    plans = unrelated(unet)
    for together, one in zip(denoise(plans, runner, max_rows=max_rows), plans, strict=True):
        (alone,) = denoise([one], runner)
        assert together.steps == alone.steps == one.steps
        assert largest(together.latents, alone.latents) < 4e-6 * float(alone.latents.abs().max())
        assert (together.maps is None) == (alone.maps is None)
        if together.maps is not None:
            assert largest(together.maps, there(alone.maps)) < 1e-5
            assert largest(there(together.features), there(alone.features)) < 1e-4


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
