"""Passes over a traced graph: forms that ONNX Runtime is faster with, and mixed precision fixed in the file.

All forms give the values that were there before; where a graph has no such pattern, nothing changes. TensorRT takes
them all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from adapedit_export.options import ExportError, Precision


def rewrite(model: ir.Model, precision: Precision, *, mixed: bool = True) -> None:
    """Bring a model into the forms for `precision`; mixed: this graph is one of those that are mixed."""
    forms = {"Attention": _keep_heads_together}
    if precision is not Precision.FLOAT16:
        # In float16 the operator stays: what it computes in float32 inside would be lost.
        forms["GroupNormalization"] = _spell_group_norm
    if precision is Precision.FLOAT32:
        forms |= {"Split": _multiply_apart, "Conv": _fold_scale}
    for node in list(model.graph):
        if node.op_type in forms:
            forms[node.op_type](node)
    if precision is Precision.MIXED and mixed:
        mix(model)
    RemoveUnusedNodesPass()(model)


def mix(model: ir.Model) -> None:
    """Multiply weights, and fused attention, in float16; everything between them stays in float32.

    Raises `ExportError` for weights that float16 can't hold.
    """
    halves: dict[Any, Any] = {}
    for node in list(model.graph):
        weighted = any(v is not None and v.is_initializer() for v in node.inputs[1:])
        if node.op_type == "Attention" or (node.op_type in ("Conv", "Gemm", "MatMul") and weighted):
            _halve(node, halves)


def _spell_group_norm(node: Any) -> None:
    """A `GroupNormalization` as a reshape, an `InstanceNormalization` over groups, and scale and bias.

    ONNX Runtime takes the operator apart into a dozen nodes, among them casts and two reductions; this form runs in
    one pass over the values.
    """
    source, scale, bias = node.inputs
    old, graph = node.outputs[0], node.graph
    groups, epsilon = node.attributes["num_groups"].as_int(), node.attributes["epsilon"].as_float()
    sides = [int(side) for side in source.shape[1:]]

    def of_channels(weight: Any) -> Any:
        # Norms of different rank may share a weight.
        array = _array(weight).reshape([sides[0]] + [1] * (len(sides) - 1))
        return _constant(f"{weight.name}_of_{len(sides)}_sides", array, graph)

    flat = _constant(f"groups_{groups}", np.array([0, groups, -1], np.int64), graph)
    back = _constant("sides_" + "_".join(map(str, sides)), np.array([0, *sides], np.int64), graph)
    ones = _constant(f"ones_{groups}", np.ones(groups, np.float32), graph)
    zeros = _constant(f"zeros_{groups}", np.zeros(groups, np.float32), graph)
    value = _insert(node, "Reshape", [source, flat], "grouped", ir.Shape([source.shape[0], groups, None]))
    value = _insert(
        node, "InstanceNormalization", [value, ones, zeros], "normed", value.shape, epsilon=epsilon
    )
    value = _insert(node, "Reshape", [value, back], "whole", source.shape)
    value = _insert(node, "Mul", [value, of_channels(scale)], "scaled", source.shape)
    _replace(old, _insert(node, "Add", [value, of_channels(bias)], "shifted", source.shape))


def _keep_heads_together(node: Any) -> None:
    """Attention on [B, P, H * D] instead of [B, H, P, D]: four transposes and four reshapes less."""
    split = [_made_by(value, "Transpose") for value in node.inputs[:3]]
    whole: list[Any] = [_made_by(step.inputs[0], "Reshape") if step is not None else None for step in split]
    transpose = _only_user(node.outputs[0], "Transpose")
    reshape = _only_user(transpose.outputs[0], "Reshape") if transpose is not None else None
    if reshape is None or None in whole or any(node.inputs[3:]):
        return
    sources = [
        _joined(step.inputs[0], heads, node) for step, heads in zip(whole, node.inputs[:3], strict=True)
    ]
    heads, old = node.inputs[0].shape[1], reshape.outputs[0]
    counts = {"q_num_heads": heads, "kv_num_heads": heads}
    shape = ir.Shape([*transpose.outputs[0].shape[:2], None])
    made = _insert(node, "Attention", sources, "whole", shape, **counts)
    made.producer().attributes.update(node.attributes)
    if len(old.shape) == 3:
        made.shape = old.shape
        _replace(old, made)
    else:  # rows are split afterwards
        reshape.replace_input_with(0, made)


def _joined(source: Any, split: Any, node: Any) -> Any:
    """What was split at once into rows and heads, [..., N, H * D], as [B, N, H * D]; split: [B, H, N, D]."""
    if len(source.shape) == 3:
        return source
    _, heads, length, width = split.shape
    sides = (-1, length, heads * width)
    flat = _constant("rows_joined_{}_{}".format(*sides[1:]), np.array(sides, np.int64), node.graph)
    return _insert(node, "Reshape", [source, flat], f"{source.name}_joined", ir.Shape([None, *sides[1:]]))


def _multiply_apart(node: Any) -> None:
    """A product that is cut into two halves (gated units) as two products: nothing is copied afterwards."""
    add = _made_by(node.inputs[0], "Add")
    product = _made_by(add.inputs[0], "MatMul") if add is not None else None
    if product is None or len(node.outputs) != 2 or not (_once(node.inputs[0]) and _once(product.outputs[0])):
        return
    weight, bias = product.inputs[1], add.inputs[1]
    if not (weight.is_initializer() and bias.is_initializer()):
        return
    half = weight.shape[1] // 2
    for number, old in enumerate(node.outputs):
        part = slice(number * half, (number + 1) * half)
        halves = [
            _constant(f"{v.name}_half_{number}", _array(v)[..., part], node.graph) for v in (weight, bias)
        ]
        value = _insert(node, "MatMul", [product.inputs[0], halves[0]], f"product_{number}", old.shape)
        _replace(old, _insert(node, "Add", [value, halves[1]], f"sum_{number}", old.shape))


def _fold_scale(node: Any) -> None:
    """Scale and bias of a norm that goes straight into a 1 x 1 convolution: part of its weight and bias."""
    add = _made_by(node.inputs[0], "Add")
    scaled = _made_by(add.inputs[0], "Mul") if add is not None else None
    if scaled is None or len(node.inputs) < 3 or tuple(node.inputs[1].shape[2:]) != (1, 1):
        return
    scale, shift = scaled.inputs[1], add.inputs[1]
    once = _once(add.outputs[0]) and _once(scaled.outputs[0])
    if not (once and scale.is_initializer() and shift.is_initializer()):
        return
    weight, bias = (_array(value).astype(np.float64) for value in node.inputs[1:3])
    folded = weight * _array(scale).reshape(1, -1, 1, 1)
    moved = bias + weight[:, :, 0, 0] @ _array(shift).astype(np.float64).reshape(-1)
    for place, array in ((1, folded), (2, moved)):
        name = f"{node.inputs[place].name}_of_{node.outputs[0].name}"
        node.replace_input_with(place, _constant(name, array.astype(np.float32), node.graph))
    node.replace_input_with(0, scaled.inputs[0])


def _halve(node: Any, halves: dict[Any, Any]) -> None:
    """Casts around a node. halves: of values, by these; every value is cast once."""
    half, wide, graph = ir.DataType.FLOAT16, ir.DataType.FLOAT, node.graph
    for place, value in enumerate(node.inputs):
        if value is None or value.dtype != wide:
            continue
        if value not in halves and value.is_initializer():
            halves[value] = _constant(f"{value.name}_half", _half_array(value), graph)
        elif value not in halves:
            halves[value] = _insert(node, "Cast", [value], f"{value.name}_half", value.shape, half, to=half)
        node.replace_input_with(place, halves[value])
    for value in node.outputs:
        back = ir.val(f"{value.name}_wide", wide, value.shape)
        graph.insert_after(node, ir.node("Cast", [value], {"to": wide}, outputs=[back]))
        _replace(value, back)
        value.dtype = half


def _half_array(value: Any) -> Any:
    array, largest = _array(value), np.finfo(np.float16).max
    if np.abs(array).max(initial=0) > largest:
        raise ExportError(
            f"weight {value.name} has values over {largest:.0f}, float16's largest; use float32"
        )
    return array.astype(np.float16)


def _made_by(value: Any, kind: str) -> Any:
    """The node of that kind that makes a value, or None."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == kind else None


def _only_user(value: Any, kind: str) -> Any:
    """The node of that kind that reads a value and is alone with that, or None."""
    users = [node for node, _ in value.uses()]
    return users[0] if _once(value) and users[0].op_type == kind else None


def _once(value: Any) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _array(value: Any) -> Any:
    return value.const_value.numpy()


def _insert(
    before: Any, kind: str, inputs: list[Any], name: str, shape: Any, dtype: Any = None, **attributes: Any
) -> Any:
    """The output of a new node in front of another, of its dtype unless another is named."""
    old = before.outputs[0]
    out = ir.val(f"{old.name}_{name}", dtype or old.dtype, shape)
    before.graph.insert_before(before, ir.node(kind, inputs, attributes, outputs=[out]))
    return out


def _constant(name: str, array: Any, graph: Any) -> Any:
    """An initializer, or the one that has this name."""
    if name not in graph.initializers:
        tensor = ir.tensor(np.ascontiguousarray(array), name=name)
        graph.register_initializer(ir.val(name, const_value=tensor))
    return graph.initializers[name]


def _replace(old: Any, new: Any) -> None:
    """Let all read `new` who read `old`, but for its own maker."""
    for user, index in list(old.uses()):
        if user is not new.producer():
            user.replace_input_with(index, new)
    graph = new.producer().graph
    for place, output in enumerate(graph.outputs):
        if output is old:
            old.name, new.name = f"{old.name}_before", old.name
            graph.outputs[place] = new
