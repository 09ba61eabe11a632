"""Steps in static buffers, indexed by a counter on the device: the loop's own results, run after run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from adapedit_engine import LocalBlend, PlanError, PyTorchRunner, RunnerError, begin, denoise
from adapedit_engine.runners.cuda_graphs import GraphedSteps, StaticSteps
from tests.engine.tiny import (
    SIDE,
    STEPS,
    adaptive,
    ddim,
    edit_plan,
    key_tokens,
    largest,
    plan,
    self_share,
    tiny_unet,
)


@pytest.fixture(scope="module")
def runner():
    with PyTorchRunner(tiny_unet(), map_divisor=1) as opened:
        yield opened


def test_static_steps_give_what_the_loop_gives(runner):
    shared = self_share(tiny_unet(), 0.5)
    plans = [edit_plan(1, 2, collect=True, self_query=shared, self_key=shared), plan(3, collect=True)]
    steps = StaticSteps([begin(each, runner) for each in plans], runner)
    one, other = denoise(plans, runner)
    for _ in range(2):
        latents = steps.run()
        assert largest(latents[:2], one.latents) < 1e-5 and largest(latents[2:], other.latents) < 1e-5
        assert largest(steps.map_sum[:2] / STEPS, one.maps) < 1e-5
        assert largest(steps.feature_sum[2:] / STEPS, other.features) < 1e-4


BLENDS = {
    "by maps": LocalBlend(token_weights=key_tokens().float(), threshold=0.6, start=0.4),
    "by places": LocalBlend(
        token_weights=key_tokens().float(),
        start=0.3,
        grow=0,
        places=(torch.arange(2 * SIDE * SIDE).view(2, -1) % 3 == 0).float(),
    ),
}


@pytest.mark.parametrize("blend", BLENDS.values(), ids=BLENDS)
def test_a_local_blend_acts_from_its_step_on_and_beside_edits_without(runner, blend):
    blended = edit_plan(1, 2, collect=True, local_blend=blend)
    plans = [plan(3, collect=True), blended, edit_plan(3, 4, collect=True)]
    steps = StaticSteps([begin(each, runner) for each in plans], runner)
    wanted = torch.cat([outcome.latents for outcome in denoise(plans, runner)])
    for _ in range(2):
        assert largest(steps.run(), wanted) < 1e-4
    (free,) = denoise([replace(blended, local_blend=None)], runner)
    assert largest(steps.latents[1:3], free.latents) > 1e-3


@pytest.mark.parametrize("update_every", [1, 2])
@pytest.mark.parametrize("part", ["temporal", "spatial"])
def test_the_single_pass_finds_what_the_loop_finds(runner, part, update_every):
    layers = torch.ones(len(runner.specs.self_layers), 2, dtype=torch.bool)
    other = {"temporal": "spatial", "spatial": "temporal"}[part]
    looks = adaptive(self_layers=layers, update_every=update_every, **{other: False})
    strength = torch.tensor([1.0, 0.8])
    plans = [
        plan(3, collect=True),
        edit_plan(1, 2, adaptive=looks, strength=strength, local_blend=BLENDS["by maps"]),
        edit_plan(3, 4, adaptive=adaptive(spatial_grow=1, map_size=(SIDE, SIDE)), strength=strength),
    ]
    steps = StaticSteps([begin(each, runner) for each in plans], runner)
    wanted = torch.cat([outcome.latents for outcome in denoise(plans, runner)])
    for _ in range(2):
        assert largest(steps.run(), wanted) < 1e-4
    (blind,) = denoise([replace(plans[1], adaptive=None)], runner)
    assert largest(steps.latents[1:3], blind.latents) > 1e-3


def test_what_changes_from_step_to_step_is_refused(runner):
    with pytest.raises(PlanError, match="run such edits through tick"):
        StaticSteps([begin(plan(1, guidance_until=0.5), runner)], runner)
    with pytest.raises(PlanError, match="as many steps"):
        StaticSteps([begin(plan(1), runner), begin(plan(1, schedule=ddim(3)), runner)], runner)


def test_graphs_want_cuda(runner):
    with pytest.raises(RunnerError, match="move the model to 'cuda'"):
        GraphedSteps([begin(plan(1), runner)], runner)
