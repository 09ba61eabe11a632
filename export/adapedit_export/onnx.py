"""From a module to a clean ONNX file with a stated contract."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapedit_engine.bundle import DTYPES
from adapedit_engine.manifest import EDITS, MAPS, ROWS, GraphSpec, TensorSpec
from adapedit_export.graphs import MAX_ROWS, Traceable
from adapedit_export.options import ExportError

EXTERNAL_FROM = 1 << 30
"""Bytes of weights from which they lie in a file of their own; a protobuf file ends at 2 GB."""

INLINE_UP_TO = 1 << 14
"""Bytes of a tensor that stays in the graph then: shapes follow from some, such as the sizes of many parts."""


def trace(traceable: Traceable, opset: int) -> Any:
    """The graph of a module as an `onnx_ir.Model`, cleaned.

    Raises `ExportError` where an input is not used, or a side that shall stay open became a number.
    """
    dims = {side: torch.export.Dim(side, min=1, max=MAX_ROWS) for side in (ROWS, EDITS, MAPS)}
    shapes = {
        name: {at: dims[side] for at, side in traceable.open_sides.get(name, {}).items()} or None
        for name in traceable.inputs
    }
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                _ByName(traceable.module).eval(),
                kwargs={"inputs": traceable.inputs},
                dynamo=True,
                opset_version=opset,
                input_names=list(traceable.inputs),
                output_names=list(traceable.outputs),
                dynamic_shapes={"inputs": shapes} if traceable.open_sides else None,
                verbose=False,
            )
    except Exception as error:
        reason = " ".join(str(error).split())[:400]
        raise ExportError(f"{type(traceable.module).__name__} can't be traced: {reason}") from error
    assert program is not None
    clean(program.model)
    _check_inputs(program.model, traceable)
    return program.model


@contextmanager
def quiet() -> Iterator[None]:
    """A block without what libraries print, log and warn of in it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class _ByName(nn.Module):
    """A module of tensors by name as one of a dictionary, which the tracer takes as it is."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: dict[str, Tensor]) -> Any:
        return self.module(**inputs)


def clean(model: Any) -> None:
    """Drop what runs nothing: dead nodes, repeated constants and subexpressions, and where a node was traced from."""
    from onnx_ir.passes import common

    for kind in (
        common.RemoveUnusedNodesPass,
        common.DeduplicateInitializersPass,
        common.CommonSubexpressionEliminationPass,
        common.RemoveUnusedFunctionsPass,
        common.RemoveUnusedOpsetsPass,
        common.ClearMetadataAndDocStringPass,
    ):
        kind()(model)
    model.producer_name, model.producer_version = "adapedit", None
    model.metadata_props.clear()


def save(model: Any, folder: Path, name: str) -> GraphSpec:
    """Write `name`.onnx, with its weights in `name`.onnx.data where they are large, and check what was written."""
    import onnx_ir

    file = f"{name}.onnx"
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    onnx_ir.save(
        model,
        folder / file,
        external_data=f"{file}.data" if weights > EXTERNAL_FROM else None,
        size_threshold_bytes=INLINE_UP_TO,
    )
    check(folder / file)
    return GraphSpec(
        file=file,
        inputs=tuple(_spec(value) for value in model.graph.inputs),
        outputs=tuple(_spec(value) for value in model.graph.outputs),
        opset=model.opset_imports[""],
        nodes=len(model.graph),
    )


def check(path: Path) -> None:
    """Hold a file to ONNX's checker, types and shapes too, without its external weights: they can take all memory.

    Raises `ExportError`.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path))  # by its path: the external weights have to be there
        graph = onnx.load(path, load_external_data=False)
        onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True)
    except Exception as error:
        raise ExportError(
            f"ONNX's checker refuses {path.name}: {' '.join(str(error).split())[:300]}"
        ) from error


def describe_layers(path: Path) -> str:
    """The layers of an ONNX file, with their inputs and outputs, as Polygraphy writes them."""
    if find_spec("polygraphy") is None:
        raise ExportError("layers are shown by the package polygraphy; pip install polygraphy")
    import onnx
    from polygraphy.backend.onnx import util

    return str(util.str_from_onnx(onnx.load(path, load_external_data=False), show_layers=True))


def _spec(value: Any) -> TensorSpec:
    shape: Any = tuple(side if isinstance(side, int) else str(side) for side in value.shape)
    dtype: Any = DTYPES[value.dtype.name]
    return TensorSpec(name=value.name, dtype=dtype, shape=shape)


def _check_inputs(model: Any, traceable: Traceable) -> None:
    for value in model.graph.inputs:
        if not value.uses() and value not in model.graph.outputs:
            raise ExportError(f"the traced graph does not use its input {value.name!r}")
        for dim, side in traceable.open_sides.get(value.name, {}).items():
            if str(value.shape[dim]) != side:
                raise ExportError(
                    f"{value.name!r} was traced with {value.shape[dim]} {side}, which shall stay open"
                )
    for value in model.graph.outputs:
        if traceable.open_sides and str(value.shape[0]) not in (ROWS, MAPS):
            raise ExportError(
                f"output {value.name!r} was traced with {value.shape[0]} rows, which shall stay open"
            )
