"""Mixed precision as a pass over a float32 graph: what automatic mixed precision does, fixed in the file."""

from __future__ import annotations

from typing import Any

import numpy as np

from adapedit_export.options import ExportError

WEIGHTED = ("Conv", "Gemm", "MatMul")
FUSED = ("Attention",)
LARGEST_HALF = 65504.0


def mix(model: Any) -> None:
    """Multiply weights, and fused attention, in float16; everything between them stays in float32.

    Cross-attention multiplies activations with each other and is left alone: its maps are edited.
    """
    casts: dict[Any, Any] = {}
    weights: dict[Any, Any] = {}
    for node in list(model.graph):
        if node.op_type in FUSED or (node.op_type in WEIGHTED and _has_weight(node)):
            _halve(node, model.graph, casts, weights)
    unused = [name for name, value in model.graph.initializers.items() if not value.uses()]
    for name in unused:
        del model.graph.initializers[name]


def _has_weight(node: Any) -> bool:
    return any(value is not None and value.is_initializer() for value in node.inputs[1:])


def _halve(node: Any, graph: Any, casts: dict[Any, Any], weights: dict[Any, Any]) -> None:
    import onnx_ir as ir

    for i, value in enumerate(node.inputs):
        if value is None or value.dtype != ir.DataType.FLOAT:
            continue
        if value.is_initializer():
            if value not in weights:
                weights[value] = _half_weight(value, graph)
            node.replace_input_with(i, weights[value])
            continue
        if value not in casts:
            cast = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT16})
            cast.outputs[0].shape, cast.outputs[0].dtype = value.shape, ir.DataType.FLOAT16
            cast.outputs[0].name = f"{value.name}_half"
            producer = value.producer()
            graph.insert_before(node, cast) if producer is None else graph.insert_after(producer, cast)
            casts[value] = cast.outputs[0]
        node.replace_input_with(i, casts[value])
    for value in node.outputs:
        back = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT})
        wide = back.outputs[0]
        wide.shape, wide.dtype, wide.name = value.shape, ir.DataType.FLOAT, f"{value.name}_wide"
        graph.insert_after(node, back)
        for user, index in list(value.uses()):
            if user is not back:
                user.replace_input_with(index, wide)
        for place, output in enumerate(graph.outputs):
            if output is value:
                value.name, wide.name = f"{output.name}_half", output.name
                graph.outputs[place] = wide
        value.dtype = ir.DataType.FLOAT16


def _half_weight(value: Any, graph: Any) -> Any:
    import onnx_ir as ir

    array = value.const_value.numpy()
    if np.abs(array).max(initial=0) > LARGEST_HALF:
        raise ExportError(
            f"weight {value.name} has values over {LARGEST_HALF:.0f}, float16's largest; use float32"
        )
    half = ir.Value(
        name=f"{value.name}_half",
        shape=value.shape,
        type=ir.TensorType(ir.DataType.FLOAT16),
        const_value=ir.tensor(array.astype(np.float16), name=f"{value.name}_half"),
    )
    graph.initializers[half.name] = half
    return half
