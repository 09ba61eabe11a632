"""Group norms in the form that ONNX Runtime has a kernel for."""

from __future__ import annotations

from typing import Any

import numpy as np


def spell_group_norms(model: Any) -> None:
    """Write every `GroupNormalization` as a reshape, an `InstanceNormalization` over groups, and scale and bias.

    ONNX Runtime takes the operator apart into a dozen nodes, among them casts and two reductions; this form runs in
    one pass over the values. TensorRT takes both.
    """
    for node in list(model.graph):
        if node.op_type == "GroupNormalization":
            _spell(node, model.graph)
    for name in [name for name, value in model.graph.initializers.items() if not value.uses()]:
        del model.graph.initializers[name]


def _spell(node: Any, graph: Any) -> None:
    import onnx_ir as ir

    source, scale, bias = node.inputs
    groups = node.attributes["num_groups"].as_int()
    epsilon = node.attributes["epsilon"].as_float()
    channels, sides = source.shape[1], [int(side) for side in source.shape[1:]]
    per_channel = [channels] + [1] * (len(sides) - 1)

    def constant(name: str, array: Any) -> Any:
        if name not in graph.initializers:
            value = ir.Value(
                name=name,
                shape=ir.Shape(array.shape),
                type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
                const_value=ir.tensor(array, name=name),
            )
            graph.initializers[name] = value
        return graph.initializers[name]

    def reshaped(weight: Any) -> Any:
        # Norms of different rank may share a weight.
        name = f"{weight.name}_of_{len(sides)}_sides"
        return constant(name, weight.const_value.numpy().reshape(per_channel))

    def step(kind: str, inputs: list[Any], shape: Any, **attributes: Any) -> Any:
        made = ir.node(kind, inputs, attributes=attributes)
        out = made.outputs[0]
        out.name, out.dtype, out.shape = (
            f"{node.outputs[0].name}_{kind.lower()}_{len(steps)}",
            source.dtype,
            shape,
        )
        steps.append(made)
        return out

    steps: list[Any] = []
    rows = source.shape[0]
    ones, zeros = np.ones(groups, np.float32), np.zeros(groups, np.float32)
    flat = constant(f"groups_{groups}", np.array([0, groups, -1], np.int64))
    back = constant("sides_" + "_".join(map(str, sides)), np.array([0, *sides], np.int64))
    grouped = step("Reshape", [source, flat], ir.Shape([rows, groups, None]))
    weights = [constant(f"ones_{groups}", ones), constant(f"zeros_{groups}", zeros)]
    normed = step("InstanceNormalization", [grouped, *weights], grouped.shape, epsilon=epsilon)
    whole = step("Reshape", [normed, back], source.shape)
    scaled = step("Mul", [whole, reshaped(scale)], source.shape)
    shifted = step("Add", [scaled, reshaped(bias)], source.shape)
    graph.insert_before(node, steps)
    old = node.outputs[0]
    for user, index in list(old.uses()):
        user.replace_input_with(index, shifted)
    for place, output in enumerate(graph.outputs):
        if output is old:
            old.name, shifted.name = f"{old.name}_group", old.name
            graph.outputs[place] = shifted
    graph.remove(node, safe=True)
