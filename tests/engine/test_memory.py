"""Memory: what plans and calls take, and how many rows a call may have once it ran out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch

from adapedit_engine.memory import (
    GOOD_CALLS,
    MAX_PATIENCE,
    CallRows,
    CallTable,
    is_out_of_memory,
    measure_call_bytes,
    plan_bytes,
)
from adapedit_engine.models.unet import OUTPUT_NAMES
from adapedit_engine.runners.pytorch import PyTorchRunner
from tests.engine.tiny import SIDE, STEPS, TEXT, TOKENS, edit_plan, noise, plan, tiny_unet

FLOAT, LATENTS = 4, 4 * SIDE * SIDE


@pytest.fixture(scope="module")
def runner() -> Iterator[PyTorchRunner]:
    with PyTorchRunner(tiny_unet(), map_divisor=2) as opened:
        yield opened


def test_a_plan_takes_its_buffers_prompts_and_outcome(runner):
    """Latents, noise, history and the outcome's latents; seven columns a step; keys and values of each row's tokens."""
    for tracks in (1, 3):
        buffers = FLOAT * tracks * (4 * LATENTS + 7 * STEPS)
        prompts = FLOAT * 2 * tracks * TOKENS * 2 * sum(layer.channels for layer in runner.specs.cross_layers)
        assert plan_bytes(plan(*range(tracks)), runner) == buffers + prompts


def test_what_a_plan_wishes_besides_takes_what_it_is_large(runner):
    less, changing = plan_bytes(plan(1), runner), noise(STEPS, TOKENS, TEXT)
    pixels, specs = (SIDE // 2) ** 2, runner.specs
    features = 2 * specs.feature_channels  # their sum, and the last step's
    seen = FLOAT * 2 * pixels * (TOKENS + features)  # in buffers, and in the outcome
    known = noise(STEPS, 4, SIDE, SIDE)
    for changes, more in (
        ({"record": True}, FLOAT * STEPS * LATENTS),
        ({"source_latents": known}, FLOAT * STEPS * LATENTS),
        ({"noise": known}, FLOAT * STEPS * LATENTS),
        ({"noise": known, "source_latents": known}, FLOAT * STEPS * LATENTS),
        ({"collect": True}, seen),
        (
            {"unconditional_steps": changing},
            FLOAT * STEPS * TOKENS * 2 * sum(layer.channels for layer in specs.cross_layers),
        ),
    ):
        assert plan_bytes(plan(1, **changes), runner) - less == more, changes
    edit = edit_plan(1, 2, collect=True)
    own = sum(
        tensor.numel() for name, tensor in edit.tensors().items() if name.startswith("cross_attention.")
    )
    assert plan_bytes(edit, runner) == 2 * (less + seen) + FLOAT * own


def test_prompts_are_as_wide_as_the_runners_numbers():
    with PyTorchRunner(tiny_unet().half(), map_divisor=2) as half:
        width = 2 * sum(layer.channels for layer in half.specs.cross_layers)
        assert plan_bytes(plan(1), half) == FLOAT * (4 * LATENTS + 7 * STEPS) + 2 * 2 * TOKENS * width


def test_calls_between_measured_ones_take_the_larger_and_others_their_share():
    table = CallTable({8: 300, 2: 100}, (8, 8))
    assert [table(rows, (8, 8)) for rows in (1, 2, 3, 8, 16)] == [100, 100, 300, 300, 600]
    assert (table(2, (16, 8)), table(2, (4, 4)), table(16, (8, 24))) == (200, 25, 1800)
    assert CallTable({2: 100}, (8, 4))(2, (8, 8)) == 200
    assert [CallTable({2: 10, 4: 20, 8: 50}, (8, 8))(rows, (8, 8)) for rows in (4, 5, 16)] == [20, 50, 100]


def test_calls_are_measured_as_an_edit_with_maps_makes_them(runner, monkeypatch):
    """The first is not counted: it may load what all later ones use."""
    calls, peak = [], {}

    def infer(inputs, outputs):
        calls.append(({name: tuple(value.shape) for name, value in inputs.items()}, outputs))
        peak["now"] = 1000 + 10 * len(calls) * len(inputs["sample"])

    monkeypatch.setattr(runner, "infer", infer)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peak.clear())
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak["now"])
    table = measure_call_bytes(runner, size=(16, 8), tokens=TOKENS, rows=(2, 3))
    assert table.measured == {2: 2 * 20, 3: 3 * 30} and table.size == (16, 8)
    shapes, outputs = calls[-1]
    assert outputs == OUTPUT_NAMES
    assert shapes["sample"] == (3, 4, 16, 8) and shapes["timestep"] == (3,)
    assert shapes["spatial_map"] == (3, 8 * 4) and shapes["token_map"] == (3, TOKENS, TOKENS)
    assert shapes["self_key_row"] == (len(runner.specs.self_layers), 3)
    assert shapes["key_0"][:2] == (3, TOKENS)
    every = calls[0][0]
    measure_call_bytes(runner, size=(16, 8), tokens=TOKENS)
    assert [shape["sample"][0] for shape, _ in calls] == [2, 2, 3, 2, 2, 4, 8, 16, 32]
    assert set(every) == set(shapes)


def test_half_the_rows_are_tried_where_memory_ran_out():
    rows = CallRows(32)
    assert (rows.now, rows.larger) == (32, None)
    for failed, now in ((32, 16), (9, 4), (16, 4), (1, 1), (1, 1)):
        rows.ran_out(failed)
        assert rows.now == now


def test_twice_the_rows_are_tried_after_a_run_of_good_calls():
    rows = CallRows(12)
    rows.ran_out(12)
    rows.ran_out(6)
    for now, then in ((3, 6), (6, 12)):
        for _ in range(GOOD_CALLS):
            assert rows.now == now and rows.larger is None
            rows.went_well()
        assert rows.larger == then
        rows.grow()
    for _ in range(2 * GOOD_CALLS):
        rows.went_well()
    assert rows.larger is None
    rows.grow()
    assert rows.now == 12


def test_a_limit_that_is_really_there_is_tried_ever_less_often():
    rows, tries = CallRows(32), []
    rows.ran_out(16)
    for call in range(40 * GOOD_CALLS):
        if rows.larger is not None:
            tries.append(call)
            rows.grow()
            rows.ran_out(16)
        rows.went_well()
    pauses = [later - earlier for earlier, later in zip([0, *tries], tries, strict=False)]
    assert pauses[0] == GOOD_CALLS and len(tries) == 5
    assert all(later > 1.9 * earlier for earlier, later in pairwise(pauses))


def test_it_is_never_tried_more_seldom_than_that():
    rows, pauses = CallRows(32), list[int]()
    rows.ran_out(16)
    while len(pauses) < math.log2(MAX_PATIENCE) + 3:
        calls = 0
        while rows.larger is None:
            rows.went_well()
            calls += 1
        pauses.append(calls)
        rows.grow()
        rows.ran_out(16)
        rows.ran_out(8)  # one try, however many calls of it fail
    assert pauses[-3:] == [GOOD_CALLS * MAX_PATIENCE] * 3 and pauses[-4] == GOOD_CALLS * MAX_PATIENCE // 2


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("Out Of Memory"), True),
        (RuntimeError("shapes do not fit"), False),
        (ValueError("memory"), False),
    ],
)
def test_errors_that_say_that_memory_ran_out(error, memory: bool):
    assert is_out_of_memory(error) == memory
