"""Steps in static buffers, indexed by a counter on the device: the loop's own results, run after run."""

from __future__ import annotations

import pytest

from adapedit_engine import PlanError, PyTorchRunner, RunnerError, begin, denoise
from adapedit_engine.runners.cuda_graphs import GraphedSteps, StaticSteps
from tests.engine.tiny import STEPS, ddim, edit_plan, largest, plan, self_share, tiny_unet


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


def test_what_changes_from_step_to_step_is_refused(runner):
    with pytest.raises(PlanError, match="run such edits through tick"):
        StaticSteps([begin(plan(1, guidance_until=0.5), runner)], runner)
    with pytest.raises(PlanError, match="as many steps"):
        StaticSteps([begin(plan(1), runner), begin(plan(1, schedule=ddim(3)), runner)], runner)


def test_graphs_want_cuda(runner):
    with pytest.raises(RunnerError, match="move the model to 'cuda'"):
        GraphedSteps([begin(plan(1), runner)], runner)
