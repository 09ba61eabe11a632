"""Edits through the scheduler are the edits that they are alone."""

from __future__ import annotations

import pytest

from adapedit_engine import EditPlan, PyTorchRunner, begin, denoise, tick
from adapedit_engine.cache import tensor_bytes
from adapedit_engine.runners import Capabilities, RunnerError
from adapedit_engine.scheduler import (
    AdmissionError,
    CachedRunner,
    EngineExecutor,
    Passes,
    Scheduler,
    measure_call_bytes,
    plan_bytes,
    slot_for,
)
from tests.engine.tiny import (
    SIDE,
    STEPS,
    TOKENS,
    ddim,
    edit_plan,
    largest,
    noise,
    plan,
    self_share,
    tiny_unet,
)

GREY = 1 / 255


@pytest.fixture(scope="module")
def unet():
    return tiny_unet()


@pytest.fixture(scope="module")
def runner(unet):
    with PyTorchRunner(unet, map_divisor=1) as opened:
        yield opened


def edits(unet) -> list[EditPlan]:
    shared = self_share(unet, 0.5)
    return [
        edit_plan(1, 2, collect=True),
        edit_plan(3, 4, word_steps=0.8, self_query=shared, self_key=shared),
        plan(5),
        edit_plan(6, 7, 8, latents_seed=9, schedule=ddim(3)),
        edit_plan(1, 9, schedule=ddim(7), collect=True),
    ]


def one_pass(edit: EditPlan) -> Passes:
    (outcome,) = yield [edit]
    return outcome


class InSlots(CachedRunner):
    """A runner that is given calls of few sizes."""

    def __init__(self, runner, sizes):
        super().__init__(runner, 0)
        self.sizes = sizes

    @property
    def capabilities(self):
        return Capabilities(rows=self.sizes)


@pytest.mark.parametrize("slots", [None, (1, 2, 4, 8, 16, 32)])
def test_an_edit_does_not_depend_on_its_neighbours(unet, runner, slots):
    executor = EngineExecutor(runner if slots is None else InSlots(runner, slots))
    scheduler = Scheduler(executor, max_rows=16)
    tickets = []
    for edit in edits(unet):
        tickets.append(scheduler.submit(one_pass(edit)))
        scheduler.step()
    scheduler.drain()
    for edit, ticket in zip(edits(unet), tickets, strict=True):
        outcome, (alone,) = ticket.future.result(), denoise([edit], runner)
        assert largest(outcome.latents, alone.latents) < GREY / 10
        assert (outcome.maps is None) == (alone.maps is None)
        if outcome.maps is not None:
            assert largest(outcome.maps, alone.maps) < 1e-4
    if slots is not None:
        assert scheduler.stats.slot_rows > scheduler.stats.rows


def test_every_call_fills_a_slot():
    seen = []

    class Watching(PyTorchRunner):
        capabilities = Capabilities(rows=(4, 8))

        def infer(self, inputs, outputs=None, *, self_layers=None):
            seen.append({tensor.shape[name.startswith("self_")] for name, tensor in inputs.items()})
            return super().infer(inputs, outputs)

    with Watching(tiny_unet(), map_divisor=1) as opened:
        denoise([edit_plan(1, 2), plan(3)], opened)
    assert seen == [{8}] * len(seen)
    with pytest.raises(RunnerError, match="9 rows do not fit the slots"):
        slot_for(9, (4, 8))


def test_the_memory_of_a_plan_is_known_beforehand(unet, runner):
    """Estimates from shapes against what the state really holds."""
    for edit in edits(unet):
        state = begin(edit, runner)
        for _ in range(2):
            (state,) = tick([state], runner)
        tables = state.tables
        held = [state.latents, *tables.prompt.values(), *tables.self_rows.values()]
        held += [
            t
            for t in (state.map_sum, state.feature_sum, tables.token_map, tables.spatial_weight)
            if t is not None
        ]
        assert tensor_bytes(held) < plan_bytes(edit, runner) < 6 * tensor_bytes(held)


def test_calls_are_measured_on_cuda_alone(runner):
    assert measure_call_bytes(runner, size=(SIDE, SIDE), tokens=TOKENS)(12, (SIDE, SIDE)) == 0


def test_a_picture_whose_calls_are_larger_than_the_budget_is_refused(runner):
    def call_bytes(rows: int, size: tuple[int, int]) -> int:
        return 1000 * rows * size[0] * size[1]

    small, large = plan(1), plan(2, latents=noise(1, 4, 4 * SIDE, 4 * SIDE))
    # Its tables fit, and beside them the call of the model's own size would.
    budget = plan_bytes(large, runner) + call_bytes(2, (SIDE, SIDE))
    executor = EngineExecutor(runner, call_bytes=call_bytes)
    scheduler = Scheduler(executor, budget_bytes=budget)
    fits, too_large = scheduler.submit(one_pass(small)), scheduler.submit(one_pass(large))
    scheduler.drain()
    assert fits.future.result().steps == STEPS
    with pytest.raises(AdmissionError, match="ask for a smaller picture"):
        too_large.future.result()
