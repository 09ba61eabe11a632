"""Forms that ONNX Runtime is faster with on the CPU: the same values by fewer nodes, for graphs in float32."""

from __future__ import annotations

from typing import Any

import numpy as np


def speed_up(model: Any) -> None:
    """Apply every form below; where a graph has no such pattern, nothing changes. TensorRT takes them all."""
    graph = model.graph
    for node in list(graph):
        if node.op_type == "Attention":
            _keep_heads_together(node, graph)
        elif node.op_type == "Split":
            _multiply_apart(node, graph)
        elif node.op_type == "Conv":
            _fold_scale(node, graph)
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]


def _keep_heads_together(node: Any, graph: Any) -> None:
    """Attention on [B, P, H * D] instead of [B, H, P, D]: four transposes and four reshapes less."""
    import onnx_ir as ir

    split = [_made_by(value, "Transpose") for value in node.inputs[:3]]
    whole = [_made_by(step.inputs[0], "Reshape") if step is not None else None for step in split]
    transpose = _only_user(node.outputs[0], "Transpose")
    reshape = _only_user(transpose.outputs[0], "Reshape") if transpose is not None else None
    sources = [step.inputs[0] for step in whole if step is not None]
    if reshape is None or len(sources) != len(whole) or any(node.inputs[3:]):
        return
    heads, old = node.inputs[0].shape[1], reshape.outputs[0]
    made = _node("Attention", sources, f"{old.name}_whole", old)
    made.attributes.update(node.attributes)
    made.attributes.add(ir.AttrInt64("q_num_heads", heads))
    made.attributes.add(ir.AttrInt64("kv_num_heads", heads))
    graph.insert_before(node, made)
    _replace(old, made.outputs[0], graph)
    _drop([reshape, transpose, node, *split, *whole], graph)


def _multiply_apart(node: Any, graph: Any) -> None:
    """A product that is cut into two halves (gated units) as two products: nothing is copied afterwards."""
    add = _made_by(node.inputs[0], "Add")
    product = _made_by(add.inputs[0], "MatMul") if add is not None else None
    if product is None or len(node.outputs) != 2 or not (_once(node.inputs[0]) and _once(product.outputs[0])):
        return
    weight, bias = product.inputs[1], add.inputs[1]
    if not (weight.is_initializer() and bias.is_initializer()):
        return
    half = weight.shape[1] // 2
    for number, old in enumerate(list(node.outputs)):
        part = slice(number * half, (number + 1) * half)
        halves = [
            _constant(f"{value.name}_half_{number}", _array(value)[..., part], graph)
            for value in (weight, bias)
        ]
        multiplied = _node("MatMul", [product.inputs[0], halves[0]], f"{old.name}_product", old)
        added = _node("Add", [multiplied.outputs[0], halves[1]], f"{old.name}_sum", old)
        graph.insert_before(node, [multiplied, added])
        _replace(old, added.outputs[0], graph)
    _drop([node, add, product], graph)


def _fold_scale(node: Any, graph: Any) -> None:
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
        old = node.inputs[place]
        made = _constant(f"{old.name}_of_{node.outputs[0].name}", array.astype(np.float32), graph)
        node.replace_input_with(place, made)
    node.replace_input_with(0, scaled.inputs[0])
    _drop([add, scaled], graph)


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


def _node(kind: str, inputs: list[Any], name: str, like: Any, **attributes: Any) -> Any:
    import onnx_ir as ir

    made = ir.node(kind, inputs, attributes=attributes)
    out = made.outputs[0]
    out.name, out.dtype, out.shape = name, like.dtype, like.shape
    return made


def _constant(name: str, array: Any, graph: Any) -> Any:
    import onnx_ir as ir

    array = np.ascontiguousarray(array)
    value = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.tensor(array, name=name),
    )
    graph.initializers[name] = value
    return value


def _replace(old: Any, new: Any, graph: Any) -> None:
    for user, index in list(old.uses()):
        user.replace_input_with(index, new)
    for place, output in enumerate(graph.outputs):
        if output is old:
            old.name, new.name = f"{old.name}_before", old.name
            graph.outputs[place] = new


def _drop(nodes: list[Any], graph: Any) -> None:
    """Remove the nodes that nothing reads any more, users before makers."""
    for node in nodes:
        if node.graph is graph and not any(v.uses() or v.is_graph_output() for v in node.outputs):
            graph.remove(node, safe=True)
