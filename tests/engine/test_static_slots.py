"""Slots of static steps: how many there are, what they hold, how they are captured, and that a step needs no host."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adapedit_engine import EditPlan, PyTorchRunner, begin, denoise
from adapedit_engine.scheduler import EngineExecutor, Scheduler
from adapedit_engine.static_steps import GraphWarning, StaticSteps
from adapedit_engine.static_steps.graph import WARM_UP, CaptureError
from adapedit_engine.static_steps.slot import Slot
from adapedit_engine.static_steps.slots import MOST_FAILURES
from adapedit_engine.ticker import Ticker
from tests.engine.every_plan import alike, one_pass, plans
from tests.engine.tiny import STEPS, ddim, edit_plan, noise, plan, there, tiny_unet


def test_slots_are_used_again_and_are_of_few_shapes():
    with PyTorchRunner(tiny_unet(), map_divisor=1, static_steps=True) as runner:
        steps = runner.kept_steps = StaticSteps(runner, padded=True)
        for _ in range(2):
            for edit in plans().values():
                denoise([edit], runner)
        rows = [slot.shape.rows for slot in steps._slots]
        assert sorted(rows) == sorted(set(rows)) and set(rows) <= {1, 2, 4, 8}
        before = steps.stats
        assert before.entries == len(rows) and before.hit_rate > 0.9
        denoise(list(plans().values())[:3], runner, max_rows=8)
        assert steps.stats.misses == before.misses


def test_slots_that_stay_keep_to_their_bytes():
    def picture(side: int) -> EditPlan:
        return plan(1, latents=noise(1, 4, 4, side), schedule=ddim(1))

    with PyTorchRunner(tiny_unet(), map_divisor=1, static_steps=True) as runner:
        steps = runner.kept_steps = StaticSteps(runner, padded=True)
        denoise([picture(4)], runner)
        steps.max_bytes = 3 * steps.stats.bytes
        for side in (6, 8, 10, 12):
            denoise([picture(side)], runner)
            assert 0 < steps.stats.bytes <= steps.max_bytes
        assert steps.stats.evictions and steps._slots[-1].shape.size[2] == 12
        # A slot that is in use stays, and one that alone is too large is there while it is.
        steps.max_bytes = 1
        ticker = Ticker(runner)
        states = [ticker.tick([begin(picture(side), runner)])[0] for side in (4, 6)]
        assert steps.stats.entries == 2 and all(state.done for state in states)


def test_a_slot_holds_nothing_of_edits_that_left(static):
    edit = plans()["an edit"]
    state = begin(edit, static)
    tables, ticker = weakref.ref(state.tables), Ticker(static)
    (state,) = ticker.tick([state])
    ticker.outcome(state, 0.0)
    del state
    gc.collect()
    assert tables() is None


def test_kept_states_of_edits_that_left_keep_no_slot(static):
    def cancels(done: int, total: int) -> None:
        raise KeyboardInterrupt

    kept = []
    for seed in range(3):
        with pytest.raises(KeyboardInterrupt) as cancelled:
            denoise([plan(seed)], static, callback=cancels)
        kept.append(cancelled)
    assert there(static.kept_steps).stats.entries <= 1


def test_a_runner_goes_with_its_slots():
    runner = PyTorchRunner(tiny_unet(), map_divisor=1, static_steps=True)
    runner.kept_steps = StaticSteps(runner, padded=True)
    with runner:
        denoise([plan(1)], runner)
    gone = weakref.ref(runner)
    gc.collect()
    gc.disable()
    try:
        del runner
        assert gone() is None
    finally:
        gc.enable()


def change_in_place(unet: Any) -> None:
    unet.conv_in.weight.data = unet.conv_in.weight.data.clone()


def change_in_the_middle(unet: Any) -> None:
    weight = unet.mid_block.resnets[0].conv1.weight
    weight.data = 2 * weight.data


def load_others(unet: Any) -> None:
    unet.load_state_dict({name: value.clone() for name, value in unet.state_dict().items()}, assign=True)


@pytest.mark.parametrize("change", [change_in_place, change_in_the_middle, load_others])
def test_other_weights_are_other_slots(change):
    unet = tiny_unet()
    runner = PyTorchRunner(unet, map_divisor=1, static_steps=True, pack=False)
    steps = runner.kept_steps = StaticSteps(runner, padded=True)
    with runner:
        denoise([plan(1)], runner)
        (before,) = steps._slots
    with runner:
        denoise([plan(1)], runner)
        assert steps._slots == [before]
    change(unet)
    with runner:
        denoise([plan(1)], runner)
        assert before not in steps._slots


def test_idle_slots_make_room_where_memory_runs_out(monkeypatch):
    made, most = Slot.__init__, 1

    def small(self: Any, states: Any, runner: Any, shape: Any, pool: Any) -> None:
        if len(runner.kept_steps._slots) >= most:
            raise torch.OutOfMemoryError("no room")
        made(self, states, runner, shape, pool)

    monkeypatch.setattr(Slot, "__init__", small)
    with PyTorchRunner(tiny_unet(), map_divisor=1, static_steps=True) as runner:
        steps = runner.kept_steps = StaticSteps(runner, padded=True)
        denoise([plan(1)], runner)
        denoise([plan(1, 2)], runner)
        assert steps.stats.entries == 1 and steps.stats.evictions == 1
        ticker = Ticker(runner)
        states = ticker.tick([begin(plan(1), runner)])
        with pytest.raises(torch.OutOfMemoryError):
            ticker.tick([begin(plan(1, 2), runner)])
        ticker.tick(states)


def test_calls_are_parted_where_padding_costs_more():
    rows = []

    class Watching(PyTorchRunner):
        def infer(self, inputs: Any, outputs: Any = None) -> Any:
            rows.append(len(inputs["sample"]))
            return super().infer(inputs, outputs)

    runner = Watching(tiny_unet(), map_divisor=1, static_steps=True)
    runner.kept_steps = StaticSteps(runner, padded=True)
    with runner:
        denoise([edit_plan(1, 2) for _ in range(5)], runner)
    assert rows == [16, 4] * STEPS


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """As on CUDA, with a stand-in for graphs that runs the step where one is launched. Returns those that were made."""
    made: list[Any] = []

    class Graph:
        def __init__(self, step: Any, pool: Any, device: Any) -> None:
            assert pool == "pool"
            self.replay = step
            for _ in range(WARM_UP):
                step()
            made.append(self)

    monkeypatch.setattr(StaticSteps, "_graphs", True)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: STREAMS[0])
    monkeypatch.setattr(GRAPH, Graph)
    return made


class Stream:
    """Notes what it waited for."""

    def __init__(self) -> None:
        self.waits: list[Any] = []
        self.wait_event = self.waits.append

    def record_event(self) -> tuple[str, Stream]:
        return "behind", self


STREAMS = [Stream()]
GRAPH = "adapedit_engine.static_steps.slot.StepGraph"


def test_calls_from_several_streams_take_turns(captured, monkeypatch):
    one, other = Stream(), Stream()
    streams = [one, other, other]
    with PyTorchRunner(tiny_unet(), map_divisor=1, static_steps=True) as runner:
        ticker = Ticker(runner)
        states = [begin(plan(1), runner)]
        for stream in streams:
            monkeypatch.setattr(torch.cuda, "current_stream", lambda device, now=stream: now)
            states = ticker.tick(states)
    assert one.waits == [] and other.waits == [("behind", one)]


def test_edits_begin_where_they_are_when_their_graph_has_been_warmed_up(captured, loop):
    edits = plans()
    with PyTorchRunner(tiny_unet(), map_divisor=1, static_steps=True) as runner:
        scheduler = Scheduler(EngineExecutor(runner), max_rows=12)
        tickets = []
        for edit in edits.values():
            tickets.append(scheduler.submit(one_pass(edit)))
            scheduler.step()
        scheduler.drain()
        again = [denoise([edit], runner)[0] for edit in edits.values()]
    for edit, ticket, other in zip(edits.values(), tickets, again, strict=True):
        (expected,) = denoise([edit], loop)
        alike(ticket.future.result(), expected)
        alike(other, expected)
    # One for each number of rows, and for what was asked of a step for the first time on the way.
    assert 3 * len(captured) < scheduler.stats.calls


def test_a_step_that_can_not_be_captured_is_said_and_run_as_it_is(captured, loop, monkeypatch):
    tried = []

    def fails(step: Any, *_: Any) -> Any:
        tried.append(step)
        step()
        raise CaptureError("operation not permitted when stream is capturing")

    monkeypatch.setattr(GRAPH, fails)
    edit = plans()["an edit"]
    with (
        PyTorchRunner(tiny_unet(), map_divisor=1, static_steps=True) as runner,
        pytest.warns(GraphWarning, match=r"not permitted.*; a step of \d rows is launched kernel by kernel"),
    ):
        (got,) = denoise([edit], runner)
        for other in (plan(1), plan(1, 2, 3, 4), edit_plan(1, 2, 3)):
            denoise([other], runner)
    alike(got, denoise([edit], loop)[0])
    assert len(tried) == MOST_FAILURES


def test_memory_that_runs_out_in_a_capture_is_for_the_scheduler(captured, loop, monkeypatch):

    def small(step: Any, *_: Any) -> Any:
        if step.__self__.shape.rows > 4:
            raise CaptureError("no room") from torch.OutOfMemoryError("no room")
        return SimpleNamespace(replay=step)

    monkeypatch.setattr(GRAPH, small)
    edits = [plans()["an edit"], plans()["longer"]]
    with PyTorchRunner(tiny_unet(), map_divisor=1, static_steps=True) as runner:
        scheduler = Scheduler(EngineExecutor(runner))
        tickets = [scheduler.submit(one_pass(edit)) for edit in edits]
        scheduler.drain()
    assert scheduler.stats.retried
    for edit, ticket in zip(edits, tickets, strict=True):
        alike(ticket.future.result(), denoise([edit], loop)[0])


class OnTheDevice(TorchDispatchMode):
    """Fails where an operator takes or makes a tensor of the host, which a captured step could do once only."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            assert not isinstance(tensor, torch.Tensor) or tensor.is_meta, (
                f"{func} is about a tensor of the host"
            )
        return result


@pytest.mark.parametrize("name", plans())
def test_nothing_of_a_step_or_of_seating_is_on_the_host(name):
    # A device without values: asking for one raises, as it would wait elsewhere.
    with PyTorchRunner(tiny_unet().to("meta"), map_divisor=1, static_steps=True) as runner:
        runner.kept_steps = StaticSteps(runner, padded=True)
        ticker = Ticker(runner)
        states = [begin(plans()[name], runner), begin(plan(5, schedule=ddim(2)), runner)]
        with OnTheDevice():
            states = ticker.tick(ticker.tick(states))
            states = ticker.tick(states[:1])
