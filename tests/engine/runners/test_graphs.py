"""The order in which a library's stream and PyTorch's wait for each other, by a stand-in for `torch.cuda`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adapedit_engine.runners.graphs import OwnStream
from adapedit_engine.runners.onnxruntime import GraphNumbers


class Stream:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log, self.cuda_stream = name, log, 7

    def wait_stream(self, other: Any) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


@pytest.mark.parametrize("fails", [False, True])
def test_each_waits_for_the_other(fails):
    log: list[str] = []
    devices: list[torch.device] = []
    usual = Stream("PyTorch's", log)

    def stream(device: torch.device) -> Stream:
        devices.append(device)
        return Stream("the library's", log)

    def current(device: torch.device) -> Stream:
        devices.append(device)
        return usual

    device = torch.device("cuda", 1)
    own = OwnStream(device, SimpleNamespace(Stream=stream, current_stream=current))
    try:
        with own.taking_turns():
            log.append("work")
            assert own.handle == 7
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
    assert log == ["the library's waits for PyTorch's", "work", "PyTorch's waits for the library's"]
    assert devices == [device, device]


def test_a_graph_is_replayed_for_calls_of_its_own_kind_alone():
    numbers = GraphNumbers()
    calls = [
        (("noise_pred",), {"rows": 4, "height": 8}),
        (("noise_pred", "cross_attention_maps"), {"rows": 4, "height": 8}),
        (("noise_pred",), {"rows": 4, "height": 16}),
        (("noise_pred",), {"rows": 8, "height": 8}),
    ]
    given = [numbers.of(*call) for call in calls]
    assert len(set(given)) == len(calls) and all(number > 0 for number in given)
    assert [numbers.of(*call) for call in calls] == given
    assert numbers.of(("noise_pred",), {"height": 8, "rows": 4}) == given[0]
