"""Captured steps, with stand-ins for CUDA's graphs: what is captured once, replayed, and left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adapedit_engine import cuda_graph
from adapedit_engine.batch import Batch
from adapedit_engine.cuda_graph import CapturedSteps, GraphWarning
from adapedit_engine.runners.pytorch import PyTorchRunner
from adapedit_engine.scheduler import denoise
from adapedit_engine.step import step
from tests.engine.every_plan import alike, plans
from tests.engine.tiny import edit_plan, largest, plan, tiny_unet


class Graph:
    """Replays what was run while it was captured."""

    def __init__(self) -> None:
        self.step: Callable[[], None] = lambda: None

    def replay(self) -> None:
        self.step()


class Cuda:
    """What of `torch.cuda` captured steps use. While a graph is captured nothing is run."""

    def __init__(self) -> None:
        self.captured = 0
        self.tried_out = list[bool]()
        self.fails = False

    def api(self) -> Any:
        stream = SimpleNamespace(wait_stream=lambda _: None)
        return SimpleNamespace(
            device=lambda _: nullcontext(),
            current_stream=lambda *_: stream,
            Stream=lambda *_: stream,
            stream=lambda _: nullcontext(),
            CUDAGraph=Graph,
            graph_pool_handle=lambda: object(),
            graph=self.graph,
        )

    @contextmanager
    def graph(self, graph: Graph, **_: Any) -> Iterator[None]:
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.captured += 1
        self.tried_out.append(torch.backends.cudnn.benchmark)
        module: Any = cuda_graph
        real, ran = module.run, list[Any]()
        module.run = ran.append
        try:
            yield
        finally:
            module.run = real
        graph.step = torch.inference_mode()(lambda: real(ran[0]))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    stand_in = Cuda()
    torch_ = SimpleNamespace(
        cuda=stand_in.api(), backends=torch.backends, OutOfMemoryError=torch.OutOfMemoryError
    )
    monkeypatch.setattr(cuda_graph, "torch", torch_)
    return stand_in


@pytest.fixture
def runner() -> Iterator[PyTorchRunner]:
    with PyTorchRunner(tiny_unet(), map_divisor=1) as opened:
        yield opened


def finish(steps: CapturedSteps, wanted: dict[str, Any]) -> dict[str, Any]:
    seats = {name: steps.batch.join(one) for name, one in wanted.items()}
    ended = {}
    while seats:
        for name, seat in list(seats.items()):
            if seat.stops_guidance:
                seats[name] = steps.batch.stop_guidance(seat)
        steps.step(steps.batch.seats)
        for name in [name for name, seat in seats.items() if seat.done]:
            ended[name] = steps.batch.leave(seats.pop(name))
    return ended


def test_replayed_steps_give_what_launched_ones_give(cuda, runner):
    expected = {name: denoise([one], runner)[0] for name, one in plans().items()}
    steps = CapturedSteps(Batch(runner, 64, whole=True))
    for names in (list(plans())[:6], list(plans())[6:12], list(plans())[12:]):
        ended = finish(steps, {name: plans()[name] for name in names})
        for name in names:
            alike(ended[name], expected[name])


def test_a_call_of_some_edits_leaves_the_others_alone(cuda, runner):
    """Where memory holds no call of all: those behind the first call's own rows are other edits, not free places."""
    steps, wanted = CapturedSteps(Batch(runner, 16, whole=True)), [edit_plan(1, 2), plan(3), edit_plan(4, 5)]
    seats = [steps.batch.join(one) for one in wanted]
    for seat in seats:
        before = [steps.batch.latents(other) for other in seats if other is not seat]
        steps.step([seat])
        assert all(
            torch.equal(steps.batch.latents(other), latents)
            for other, latents in zip((one for one in seats if one is not seat), before, strict=True)
        )
    for seat, one in zip(seats, wanted, strict=True):
        other = Batch(runner, 16)
        alone = other.join(one)
        step(other)
        assert largest(steps.batch.latents(seat), other.latents(alone)) < 1e-4


def test_a_graph_holds_for_the_edits_that_come_after(cuda, runner):
    steps = CapturedSteps(Batch(runner, 8, whole=True))
    finish(steps, {"first": edit_plan(1, 2)})
    captured = cuda.captured
    finish(steps, {"second": edit_plan(3, 4, word_steps=0.9)})
    assert cuda.captured == captured == 1
    finish(steps, {"of other rows": plan(1)})
    assert cuda.captured == 2


def test_convolutions_are_tried_out_while_a_step_is_captured_and_only_then(cuda, runner):
    finish(CapturedSteps(Batch(runner, 8, whole=True)), {"an edit": edit_plan(1, 2)})
    assert cuda.tried_out == [True] and not torch.backends.cudnn.benchmark


def test_a_capture_that_fails_is_said_once_and_costs_no_edit(cuda, runner):
    cuda.fails = True
    steps = CapturedSteps(Batch(runner, 8, whole=True))
    with pytest.warns(GraphWarning, match="could not be captured .*launched kernel by kernel") as said:
        ended = finish(steps, {"an edit": edit_plan(1, 2, collect=True)})
        finish(steps, {"another": plan(1)})
    assert len([one for one in said if one.category is GraphWarning]) == 1
    alike(ended["an edit"], denoise([edit_plan(1, 2, collect=True)], runner)[0])


def test_memory_that_runs_out_in_a_capture_is_for_whoever_can_run_fewer(cuda, runner, monkeypatch):
    steps = CapturedSteps(Batch(runner, 8, whole=True))
    seat = steps.batch.join(edit_plan(1, 2))
    before = steps.batch.latents(seat)

    def full(call: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cuda_graph, "run", full)
    with pytest.raises(torch.OutOfMemoryError):
        steps.step(steps.batch.seats)
    assert torch.equal(steps.batch.latents(seat), before) and seat.step == 0
