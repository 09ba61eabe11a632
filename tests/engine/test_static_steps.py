"""Steps over static buffers are those of the loop, for edits that join, leave and fail as they like."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapedit_engine import PyTorchRunner, RunnerError, begin, denoise, observe, outcome, tick
from adapedit_engine.loop import LoopError
from adapedit_engine.runners.compiled import CompiledRunner
from adapedit_engine.scheduler import EngineExecutor, PaddedRunner, Scheduler, plan_bytes
from adapedit_engine.static_steps import StaticSteps
from adapedit_engine.ticker import Ticker
from tests.engine.every_plan import alike, one_pass, plans
from tests.engine.tiny import ddim, edit_plan, plan, there, tiny_unet


@pytest.mark.parametrize("name", plans())
def test_a_plan_alone_is_that_of_the_loop(loop, static, name):
    wanted = plans()[name]
    (expected,) = denoise([wanted], loop)
    for _ in range(2):  # the second may sit where the first sat
        alike(denoise([wanted], static)[0], expected)


def test_all_of_them_together_are_those_of_the_loop(loop, static):
    for got, expected in zip(
        denoise(list(plans().values()), static, max_rows=None),
        denoise(list(plans().values()), loop),
        strict=True,
    ):
        alike(got, expected)


def test_they_join_and_leave_between_steps(loop, static):
    scheduler = Scheduler(EngineExecutor(static), max_rows=12)
    tickets = []
    for number, edit in enumerate(plans().values()):
        tickets.append(scheduler.submit(one_pass(edit)))
        if number % 3:
            scheduler.step()
    tickets[4].future.cancel()
    scheduler.drain()
    for number, (edit, ticket) in enumerate(zip(plans().values(), tickets, strict=True)):
        if number != 4:
            alike(ticket.future.result(), denoise([edit], loop)[0])


class Faulty(PyTorchRunner):
    """Fails at chosen calls."""

    calls, fails_at = 0, frozenset[int]()

    def infer(self, inputs: Any, outputs: Any = None) -> Any:
        self.calls += 1
        if self.calls in self.fails_at:
            raise RuntimeError("no")
        return super().infer(inputs, outputs)


@pytest.mark.parametrize("padded", [False, True])
def test_an_edit_whose_call_failed_goes_on_from_where_it_was(loop, padded):
    edits = [
        plans()[name] for name in ("two edits of one source, shorter", "an edit", "longer", "the single pass")
    ]
    runner = Faulty(tiny_unet(), map_divisor=1, static_steps=True)
    runner.kept_steps = StaticSteps(runner, padded=padded)
    with runner:
        # The fourth call is the first without the shortest edit: the others have just been seated anew.
        runner.fails_at = frozenset({2, 4, 5, 9})
        scheduler = Scheduler(EngineExecutor(runner))
        tickets = [scheduler.submit(one_pass(edit)) for edit in edits]
        scheduler.drain()
    assert scheduler.stats.retried == 4
    for edit, ticket in zip(edits, tickets, strict=True):
        alike(ticket.future.result(), denoise([edit], loop)[0])


def test_what_fails_beside_a_step_fails_before_it(loop, monkeypatch):
    """Memory that runs out while the single pass looks at what was seen."""
    calls = []

    def fails_at_times(*given: Any) -> Any:
        calls.append(given)
        if len(calls) in (1, 2, 6):
            raise torch.OutOfMemoryError("no room")
        return observe(*given)

    names = ("an edit", "the single pass", "known latents", "the single pass, every other step")
    edits = [plans()[name] for name in names]
    expected = [denoise([edit], loop)[0] for edit in edits]
    runner = PyTorchRunner(tiny_unet(), map_divisor=1, static_steps=True)
    runner.kept_steps = StaticSteps(runner, padded=True)
    monkeypatch.setattr("adapedit_engine.loop.observe", fails_at_times)
    with runner:
        scheduler = Scheduler(EngineExecutor(runner))
        tickets = [scheduler.submit(one_pass(edit)) for edit in edits]
        scheduler.drain()
    assert scheduler.stats.retried == 3
    for ticket, wanted in zip(tickets, expected, strict=True):
        alike(ticket.future.result(), wanted)


def test_only_the_newest_state_can_go_on(static):
    ticker = Ticker(static)
    first = begin(plans()["an edit"], static)
    (second,) = ticker.tick([first])
    with pytest.raises(LoopError, match="after 0 steps, static steps have run 1"):
        ticker.tick([first])
    (third,) = ticker.tick([second])
    with pytest.raises(LoopError, match="after 1 steps"):
        ticker.outcome(second, 0.0)
    with pytest.raises(LoopError, match="go on with the Ticker"):
        tick([third], static)
    with pytest.raises(LoopError, match="go on with the Ticker"):
        outcome(third)
    ticker.outcome(third, 0.0)
    with pytest.raises(LoopError, match="has left static steps"):
        ticker.tick([third])
    steps = there(static.kept_steps)
    done = Ticker(static).tick([begin(plan(1, schedule=ddim(1)), static)])
    for states in ([], done):
        with pytest.raises(LoopError, match="is done, or none"):
            steps.tick(states)


def test_a_closed_runner_is_said(loop):
    runner = PyTorchRunner(tiny_unet(), map_divisor=1, static_steps=True)
    with runner:
        states = Ticker(runner).tick([begin(plan(1), runner)])
    with pytest.raises(RunnerError, match="is closed"):
        Ticker(runner).tick(states)


def test_an_outcome_stays_when_its_place_is_taken(static):
    (one,) = denoise([plans()["an edit"]], static)
    kept = one.latents.clone()
    denoise([edit_plan(3, 4, collect=True)], static)
    assert torch.equal(one.latents, kept)


def test_what_records_or_reuses_runs_in_the_loop(static, loop):
    reusing = plan(1, feature_interval=2)
    ticker = Ticker(static)
    assert not ticker.is_static(reusing) and ticker.is_static(plan(1))
    assert ticker.groups([begin(reusing, static), begin(plan(1), static), begin(plan(2), static)]) == [
        [0],
        [1, 2],
    ]
    for got, expected in zip(
        denoise([reusing, plan(3)], static), denoise([reusing, plan(3)], loop), strict=True
    ):
        alike(got, expected)
    executor = EngineExecutor(static)
    assert executor.kind(reusing) != executor.kind(plan(1))


def test_a_runner_that_pads_or_compiles_is_looked_through(loop):
    wanted = [plans()["an edit"], plans()["a blend by maps"]]
    compiled = CompiledRunner(tiny_unet(), map_divisor=1, backend="eager", static_steps=True)
    with PaddedRunner(compiled, (4, 8)) as runner:
        got = denoise(wanted, runner)
        assert there(compiled.kept_steps) is StaticSteps.of(runner)
    for one, expected in zip(got, denoise(wanted, loop), strict=True):
        alike(one, expected)


def test_static_steps_are_for_cuda_unless_asked_for(loop, static):
    assert StaticSteps.of(loop) is None and not PyTorchRunner(tiny_unet()).static_steps
    assert StaticSteps.of(static) is static.kept_steps


def test_buffers_count_as_memory(loop, static):
    assert plan_bytes(plans()["an edit"], static) > 1.5 * plan_bytes(plans()["an edit"], loop)
