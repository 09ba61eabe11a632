"""Groups of plans, progress, cancelling, and what can not be ticked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from adapedit_engine import (
    PlanError,
    PyTorchRunner,
    begin,
    denoise,
    group_plans,
    tick,
)
from adapedit_engine.loop import LoopError
from tests.engine.tiny import (
    SIDE,
    STEPS,
    ddim,
    edit_plan,
    noise,
    plan,
    tiny_unet,
)


@pytest.fixture(scope="module")
def unet():
    return tiny_unet()


@pytest.fixture(scope="module")
def runner(unet):
    with PyTorchRunner(unet, map_divisor=1) as opened:
        yield opened


def test_groups_are_first_fit_in_the_order_given():
    plans = [edit_plan(1, 2), edit_plan(1, 2, 3), plan(1), edit_plan(4, 5), plan(6)]  # rows 4, 6, 2, 4, 2
    assert group_plans(plans, None) == [[0, 1, 2, 3, 4]]
    assert group_plans(plans, 8) == [[0, 2, 4], [1], [3]]
    assert group_plans(plans, 6) == [[0, 2], [1], [3, 4]]
    wide = plan(1, latents=noise(1, 4, SIDE, 2 * SIDE))
    assert group_plans([plan(1), wide, plan(2)], None) == [[0, 2], [1]]
    with pytest.raises(PlanError, match="an edit of 3 tracks takes 6 rows, max_rows is 4: raise it"):
        group_plans(plans, 4)


def test_calls_hold_at_most_max_rows(unet):
    rows = []
    unet.conv_in.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[0]))
    with PyTorchRunner(unet) as runner:
        denoise([plan(i) for i in range(5)], runner, max_rows=4)
    assert rows == [4] * 2 * STEPS + [2] * STEPS


def test_progress_counts_ticks(runner):
    seen = []
    denoise(
        [plan(1), plan(2, schedule=ddim(3)), plan(3)],
        runner,
        max_rows=4,
        callback=lambda *now: seen.append(now),
    )
    assert seen == [(i + 1, 2 * STEPS) for i in range(2 * STEPS)]


class Cancelled(Exception):
    pass


def test_cancelling_in_the_callback_leaves_nothing_behind():
    unet = tiny_unet()
    before = dict(unet.attn_processors)

    def cancel(done: int, total: int) -> None:
        if done == 2:
            raise Cancelled

    with PyTorchRunner(unet, map_divisor=1) as runner:
        (undisturbed,) = denoise([edit_plan(1, 2)], runner)
        with pytest.raises(Cancelled):
            denoise([edit_plan(1, 2)], runner, callback=cancel)
        (again,) = denoise([edit_plan(1, 2)], runner)
    assert torch.equal(undisturbed.latents, again.latents)
    assert all(now is before[name] for name, now in unet.attn_processors.items())


def test_what_can_not_be_ticked(runner):
    with pytest.raises(LoopError, match="an edit that is done, or none"):
        tick([], runner)
    done = replace(begin(plan(1), runner), step_index=STEPS)
    with pytest.raises(LoopError, match="an edit that is done"):
        tick([done], runner)
    wide = begin(plan(1, latents=noise(1, 4, SIDE, 2 * SIDE)), runner)
    with pytest.raises(PlanError, match="can't share a UNet call"):
        tick([begin(plan(1), runner), wide], runner)
    assert denoise([], runner) == []
