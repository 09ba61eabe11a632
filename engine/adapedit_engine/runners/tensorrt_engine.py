"""What a loaded engine says of itself, held against the manifest and the record of its plan.

Loading takes an NVIDIA driver, so this has run on stand-ins alone; that the bindings have what is asked is tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adapedit_engine.manifest import GraphSpec, TensorSpec
from adapedit_engine.plan_files import PlanRecord
from adapedit_engine.runners import RunnerError

DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64"}
"""TensorRT's names to the manifest's."""


def difference(wanted: TensorSpec, dtype: Any, shape: Sequence[int], is_output: bool) -> str | None:
    """TensorRT's dtype and shape of a tensor in words, where they are not the manifest's; None where they are.

    Sides that are open are -1 there. Those of outputs may be open where the exporter could tell their size.
    """
    name, sides = DTYPES.get(dtype.name, dtype.name), tuple(shape)
    closed = tuple(side if isinstance(side, int) else -1 for side in wanted.shape)
    fits = len(sides) == len(closed) and all(
        got == side or (got == -1 and is_output) for got, side in zip(sides, closed, strict=True)
    )
    return None if name == wanted.dtype and fits else f"{name} {sides}"


def check_engine(engine: Any, spec: GraphSpec, record: PlanRecord) -> None:
    """Raise `RunnerError` unless inputs, outputs and profiles are those of the manifest and of the record."""
    seen = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    for kind, mode in (("inputs", "INPUT"), ("outputs", "OUTPUT")):
        there = {name for name in seen if engine.get_tensor_mode(name).name == mode}
        wanted = {tensor.name: tensor for tensor in getattr(spec, kind)}
        if there != set(wanted):
            raise _other(record, f"has the {kind} {_named(there)}", _named(wanted))
        for name, tensor in wanted.items():
            found = difference(
                tensor, engine.get_tensor_dtype(name), engine.get_tensor_shape(name), kind == "outputs"
            )
            if found is not None:
                raise _other(record, f"has {name} as {found}", f"{tensor.dtype} {tuple(tensor.shape)}")
    profiles = record.key.profiles
    if engine.num_optimization_profiles != len(profiles):
        raise _other(record, f"has {engine.num_optimization_profiles} profiles", str(len(profiles)))
    for index, profile in enumerate(profiles):
        for name, shapes in profile.items():
            got = tuple(tuple(shape) for shape in engine.get_tensor_profile_shape(name, index))
            if got != tuple(tuple(shape) for shape in shapes):
                raise _other(record, f"takes {name} in profile {index} as {got}", str(shapes))


def _named(names: Any) -> str:
    return ", ".join(sorted(names)) or "none"


def _other(record: PlanRecord, found: str, wanted: str) -> RunnerError:
    return RunnerError(
        f"plan {record.file_name} {found}, wanted {wanted}: it is of another graph; build it again: adapedit build"
    )
