"""What the benchmarks of approximations and traces count and compare."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch.profiler import ProfilerActivity, profile

from adapedit_engine.runners.pytorch import PyTorchRunner
from benchmarks import approximations, trace
from tests.engine.tiny import edit_plan, tiny_unet


def event(name: str, start: float, end: float | None = None) -> SimpleNamespace:
    return SimpleNamespace(name=name, time_range=SimpleNamespace(start=start, end=end or start + 1))


def test_waits_are_those_inside_the_loop():
    events = [
        event("cudaStreamSynchronize", 5),
        event(trace.LOOP, 10, 100),
        event("cudaStreamSynchronize", 20),
        event("cudaLaunchKernel", 30),
        event("cudaStreamSynchronize", 40),
        event("cudaMemcpy", 50),
        event("cudaDeviceSynchronize", 101),
    ]
    assert trace.waits_inside(events) == {"cudaStreamSynchronize": 2, "cudaMemcpy": 1}


def test_a_trace_on_the_cpu_tells_the_operators():
    with (
        PyTorchRunner(tiny_unet(), map_divisor=1) as runner,
        profile(activities=[ProfilerActivity.CPU]) as found,
    ):
        trace.run(edit_plan(1, 2), runner)
    told = trace.report(found, "cpu")
    assert told["host_synchronisations"] is None
    names = [operator["name"] for operator in told["operators"]]
    assert any("conv" in name for name in names) and trace.LOOP not in names
    assert trace.waits_inside(found.events()) == {}


def found(products: list[float | None], seconds: float) -> approximations.Found:
    differences = [(place, place / 2) for place in range(len(products))]
    return approximations.Found(
        pipe=None, fields={}, seconds=seconds, processor=seconds, products=products, differences=differences
    )


def test_a_row_compares_what_is_usable_in_both():
    exact = found([1.0, 0.8, None, 0.6, 0.5], 10.0)
    row = approximations.summary(found([0.9, None, 0.7, 0.6, 0.3], 4.0), exact)
    assert row["speed_up"] == 2.5 and row["usable"] == 4 and row["compared"] == 3
    assert row["product"] == pytest.approx(0.6) and row["loss"]["value"] == pytest.approx(0.1)
    assert row["loss"]["low"] <= 0.1 <= row["loss"]["high"]
    assert row["grey_levels"] == {"largest": 4, "mean": 1.0}
    assert approximations.summary(exact, exact)["loss"]["value"] == 0
    assert approximations.summary(found([None] * 5, 4.0), exact)["loss"] is None


def test_what_is_suggested_can_be_asked_for():
    from adapedit import EditRequest

    for fields in {**approximations.SWEEP, **approximations.SUGGESTED}.values():
        request = EditRequest(source_prompt="a dog", target_prompt="a cat", **fields)
        assert request != EditRequest(source_prompt="a dog", target_prompt="a cat")
