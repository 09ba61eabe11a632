"""How times are taken on a CUDA device, seen by one that is made up: it counts calls instead of computing."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from benchmarks import kernels
from benchmarks.kernels import Layer


class Device:
    """Takes a millisecond a call. Calls in a capture are kept, and made again when the graph is replayed."""

    def __init__(self) -> None:
        self.now, self.captured = 0.0, None

    def call(self) -> None:
        if self.captured is not None:
            self.captured.append(1)
        else:
            self.now += 1

    def twice(self) -> None:
        self.call()
        self.call()

    @contextmanager
    def graph(self, graph):
        self.captured = graph.calls
        yield
        self.captured = None


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()

    class Event(SimpleNamespace):
        def record(self) -> None:
            self.at = device.now

        def synchronize(self) -> None: ...

        def elapsed_time(self, other) -> float:
            return other.at - self.at

    class Graph:
        def __init__(self) -> None:
            self.calls: list[int] = []

        def replay(self) -> None:
            for _ in self.calls:
                device.call()

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": device.graph,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda stream: device.graph(Graph()),
        "synchronize": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return device


def test_a_call_takes_what_the_device_takes(device: Device):
    assert kernels.median_seconds(device.call) == pytest.approx(1e-3)
    assert kernels.milliseconds({"one": device.call, "two": device.twice}) == {
        "one": pytest.approx(1),
        "two": pytest.approx(2),
    }


def test_a_layer_is_told_with_the_hosts_time_beside_the_devices(device: Device, monkeypatch):
    monkeypatch.setattr(kernels, "variants", lambda case: dict.fromkeys(NAMES, device.call))
    found = kernels.measure(Layer(side=3, width=8), 4, torch.float32, "cpu", 1e9)
    for name in NAMES:
        assert found[name]["ms"] == pytest.approx(1) and found[name]["host_us"] >= 0
    assert found["times_sdpa"] == pytest.approx(1)


NAMES = ("sdpa", "eager", "edited", "maps")
