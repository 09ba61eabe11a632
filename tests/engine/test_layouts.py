"""A layout is kept while its edits stay together, and no longer: it holds a copy of their prompts."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from adapedit_engine import EditPlan, PyTorchRunner
from adapedit_engine.layouts import KEPT, Layouts
from adapedit_engine.rows import RowTables
from adapedit_engine.scheduler import EngineExecutor, Passes, Scheduler
from tests.engine.tiny import ddim, edit_plan, plan, tiny_unet


@pytest.fixture(scope="module")
def runner():
    with PyTorchRunner(tiny_unet(), map_divisor=1) as opened:
        yield opened


@torch.inference_mode()
def tables(runner: PyTorchRunner, *plans: EditPlan) -> list[RowTables]:
    return [RowTables.build(each, runner) for each in plans]


def test_the_same_edits_find_their_layout_again(runner):
    one, two = tables(runner, edit_plan(1, 2), plan(3))
    layouts = Layouts(runner)
    assert layouts.of([one, two]) is layouts.of([one, two])
    assert layouts.of([two, one]).tables == (two, one)


def test_an_edit_is_in_one_layout_at_most(runner):
    one, two, other = tables(runner, edit_plan(1, 2), plan(3), plan(4))
    layouts = Layouts(runner)
    both, apart = weakref.ref(layouts.of([one, two])), layouts.of([other])
    layouts.of([one])
    gc.collect()
    assert both() is None
    assert layouts.of([other]) is apart


def test_what_was_before_guidance_stopped_is_forgotten_with_what_is_after(runner):
    (one,) = tables(runner, edit_plan(1, 2, guidance_until=0.4))
    assert one.late is not None
    layouts = Layouts(runner)
    early = weakref.ref(layouts.of([one]))
    layouts.of([one.late])
    gc.collect()
    assert early() is None


def test_no_more_than_a_few_are_kept_of_edits_that_never_come_again(runner):
    layouts = Layouts(runner)
    kept = [weakref.ref(layouts.of(tables(runner, plan(seed)))) for seed in range(KEPT + 3)]
    gc.collect()
    assert [layout() is not None for layout in kept] == [False] * 3 + [True] * KEPT


def one_pass(edit: EditPlan) -> Passes:
    (outcome,) = yield [edit]
    return outcome


@pytest.fixture
def made(monkeypatch) -> list[weakref.ref]:
    """All layouts that were asked for."""
    made: list[weakref.ref] = []
    of = Layouts.of

    def watched(self, tables):
        layout = of(self, tables)
        made.append(weakref.ref(layout))
        return layout

    monkeypatch.setattr(Layouts, "of", watched)
    return made


def test_a_scheduler_that_is_idle_holds_no_layout(runner, made):
    scheduler = Scheduler(EngineExecutor(runner), max_rows=16)
    for edit in (
        edit_plan(1, 2, schedule=ddim(3)),
        plan(3, schedule=ddim(2)),
        edit_plan(4, 5, guidance_until=0.5),
    ):
        scheduler.submit(one_pass(edit))
    scheduler.drain()
    gc.collect()
    assert made and all(layout() is None for layout in made)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("ends", ["cancelled", "failed"])
def test_nor_does_it_of_edits_that_were_cancelled_or_failed(runner, made, monkeypatch, ends, steps):
    scheduler = Scheduler(EngineExecutor(runner), max_rows=16)
    ticket = scheduler.submit(one_pass(edit_plan(1, 2, guidance_until=0.4)))
    for _ in range(steps):
        scheduler.step()
    assert made and made[-1]() is not None
    if ends == "cancelled":
        ticket.future.cancel()
    else:
        monkeypatch.delattr(PyTorchRunner, "infer")
    scheduler.drain()
    assert (scheduler.stats.cancelled, scheduler.stats.failed) == (ends == "cancelled", ends == "failed")
    del ticket  # an error knows where it arose
    gc.collect()
    assert all(layout() is None for layout in made)
