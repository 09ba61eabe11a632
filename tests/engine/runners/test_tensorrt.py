"""A loaded engine is held against the manifest: on stand-ins, since loading takes a driver."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

from adapedit_engine.manifest import BundleError, FileSpec, GraphSpec, PlanKey, PlanRecord, TensorSpec
from adapedit_engine.runners.tensorrt import check_engine

SPEC = GraphSpec(
    file="unet.onnx",
    opset=20,
    nodes=1,
    inputs=(
        TensorSpec(name="sample", dtype="float16", shape=("rows", 4, 8, 8)),
        TensorSpec(name="source_row", dtype="int64", shape=("rows",)),
    ),
    outputs=(TensorSpec(name="noise_pred", dtype="float16", shape=("rows", 4, 8, 8)),),
)
PROFILE = {"sample": ((1, 4, 8, 8), (4, 4, 8, 8), (6, 4, 8, 8)), "source_row": ((1,), (4,), (6,))}
RECORD = PlanRecord(
    key=PlanKey(
        graph="unet",
        onnx_sha256="0" * 64,
        family="tensorrt-rtx",
        version="1.0",
        compute_capability="9.0",
        workload="latency",
        profiles=(PROFILE,),
    ),
    file=FileSpec(bytes=1, sha256="0" * 64),
    layers=1,
    activation_bytes=0,
    build_seconds=0.0,
)
TENSORS = {
    "sample": ("INPUT", "HALF", (-1, 4, 8, 8)),
    "source_row": ("INPUT", "INT64", (-1,)),
    "noise_pred": ("OUTPUT", "HALF", (-1, -1, 8, 8)),
}


@dataclass
class Engine:
    """Answers as `ICudaEngine` does."""

    tensors: dict[str, tuple[str, str, tuple[int, ...]]] = field(default_factory=lambda: dict(TENSORS))
    profiles: tuple[dict[str, Any], ...] = (PROFILE,)

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return SimpleNamespace(name=self.tensors[name][0])

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.tensors[name][1])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name][2]

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        return list(self.profiles[index][name])


def test_the_engine_of_this_graph_is_taken():
    check_engine(Engine(), SPEC, RECORD)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"sample": None}, "has other inputs .*: sample is missing, wanted sample, source_row"),
        (
            {"more": ("OUTPUT", "HALF", (-1,))},
            "has other outputs .*: more is one too many, wanted noise_pred",
        ),
        ({"noise_pred": ("INPUT", "HALF", (-1, 4, 8, 8))}, "noise_pred is one too many, wanted sample"),
        ({"sample": ("INPUT", "FLOAT", (-1, 4, 8, 8))}, "sample is float32"),
        ({"sample": ("INPUT", "HALF", (-1, -1, 8, 8))}, r"wanted float16 \('rows', 4, 8, 8\)"),
        ({"source_row": ("INPUT", "INT64", (4,))}, r"source_row is int64 \(4,\)"),
        ({"noise_pred": ("OUTPUT", "HALF", (-1, 8, 8))}, "noise_pred is float16"),
    ],
)
def test_other_inputs_and_outputs_are_refused(tensors, message):
    changed = {name: value for name, value in (TENSORS | tensors).items() if value is not None}
    with pytest.raises(BundleError, match=message) as raised:
        check_engine(Engine(tensors=changed), SPEC, RECORD)
    assert "build it again: adapedit build" in str(raised.value)


def test_other_profiles_are_refused():
    with pytest.raises(BundleError, match="has 2 profiles, wanted 1"):
        check_engine(Engine(profiles=(PROFILE, PROFILE)), SPEC, RECORD)
    larger = PROFILE | {"source_row": ((1,), (4,), (8,))}
    with pytest.raises(BundleError, match="takes source_row in profile 0 as"):
        check_engine(Engine(profiles=(larger,)), SPEC, RECORD)
    kept = replace(RECORD, key=replace(RECORD.key, profiles=(larger,)))
    check_engine(Engine(profiles=(larger,)), SPEC, kept)


@pytest.mark.skipif(find_spec("tensorrt_rtx_bindings") is None, reason="wants TensorRT-RTX's bindings")
def test_the_bindings_have_what_is_asked_of_an_engine():
    from adapedit_engine.runners.tensorrt import load

    trt = load("tensorrt-rtx").module
    asked = {name for name in vars(Engine) if name.startswith(("num_", "get_"))}
    assert len(asked) == 7
    assert asked <= set(dir(trt.ICudaEngine))
    assert {"INPUT", "OUTPUT"} <= set(trt.TensorIOMode.__members__)
    assert {"FLOAT", "HALF", "INT64"} <= set(trt.DataType.__members__)
