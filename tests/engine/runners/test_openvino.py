"""Where OpenVINO does not run it says why, before any work; what it computes is held to PyTorch in tests/export."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import pytest

from adapedit_engine.runners import openvino
from adapedit_engine.runners.base import RunnerError, device_of


def test_the_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        RunnerError, match=r"'openvino' .*needs the package openvino; pip install 'adapedit\[openvino"
    ):
        device_of("openvino")


def test_a_processor_without_bfloat16_is_refused_it(monkeypatch):
    core = SimpleNamespace(get_property=lambda *_: ["FP32", "INT8"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(openvino, "_core", lambda: core)
    assert openvino.why_not("openvino") is None
    with pytest.raises(
        RunnerError, match="needs a processor that multiplies in bfloat16 .*; take runner openvino$"
    ):
        device_of("openvino-bfloat16")
