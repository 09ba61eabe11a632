"""From an ONNX file to TensorRT's network, with its reasons in one line where it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapedit_engine.manifest import GraphSpec
from adapedit_engine.plan_files import Shapes
from adapedit_engine.runners.tensorrt import Messages, TensorRT, difference
from adapedit_export.options import ExportError


def parse(tensorrt: TensorRT, builder: Any, path: Path, messages: Messages) -> tuple[Any, Any]:
    """A strongly typed network: precision is what the file says. The parser holds weights and has to outlive it.

    Raises `ExportError` with the node and the operator that TensorRT does not take.
    """
    trt = tensorrt.module
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, messages.logger)
    if not parser.parse_from_file(str(path)):
        raise ExportError(
            f"{tensorrt.flavour} {tensorrt.version} does not take {path.name}: {_reason(parser)}"
        )
    _let_attention_decompose(trt, network)
    return network, parser


def check_network(network: Any, spec: GraphSpec, name: str) -> None:
    """Raise `ExportError` unless inputs and outputs are those of the manifest: names, dtypes, sides that are open."""
    found = {
        "inputs": [network.get_input(i) for i in range(network.num_inputs)],
        "outputs": [network.get_output(i) for i in range(network.num_outputs)],
    }
    for kind, tensors in found.items():
        wanted = getattr(spec, kind)
        if {tensor.name for tensor in tensors} != {tensor.name for tensor in wanted}:
            raise ExportError(f"{name}: TensorRT sees other {kind} than the manifest; export the model again")
        by_name = {tensor.name: tensor for tensor in tensors}
        for tensor in wanted:
            got = by_name[tensor.name]
            seen = difference(tensor, got.dtype, got.shape, kind == "outputs")
            if seen is not None:
                raise ExportError(
                    f"{name}: TensorRT sees {tensor.name} as {seen}, "
                    f"the manifest says {tensor.dtype} {tensor.shape}; export the model again"
                )


def add_profiles(
    builder: Any, config: Any, network: Any, profiles: tuple[dict[str, Shapes], ...], name: str
) -> None:
    """Set the shapes of every profile. Raises `ExportError` for shapes that the graph does not take."""
    for index, shapes in enumerate(profiles):
        profile = builder.create_optimization_profile()
        for i in range(network.num_inputs):
            tensor = network.get_input(i)
            if tensor.name not in shapes:
                raise ExportError(f"{name}: profile {index} says nothing of input {tensor.name!r}")
            low, best, high = shapes[tensor.name]
            _check_shapes(name, index, tensor, low, best, high)
            profile.set_shape(tensor.name, low, best, high)
        config.add_optimization_profile(profile)


def _check_shapes(name: str, index: int, tensor: Any, low: Any, best: Any, high: Any) -> None:
    fixed = tuple(tensor.shape)
    for shape in (low, best, high):
        if len(shape) != len(fixed) or any(f not in (-1, s) for f, s in zip(fixed, shape, strict=True)):
            raise ExportError(
                f"{name}: profile {index} gives {tensor.name!r} the shape {tuple(shape)}, the graph has {fixed}"
            )
    if any(not a <= b <= c for a, b, c in zip(low, best, high, strict=True)):
        raise ExportError(
            f"{name}: profile {index} of {tensor.name!r} goes from {tuple(low)} by {tuple(best)} to {tuple(high)}; "
            "wanted smallest, best and largest in this order"
        )


def _let_attention_decompose(trt: Any, network: Any) -> None:
    # Fused kernels are for half precision and for some widths of heads; elsewhere the layer may be spelled out.
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def _reason(parser: Any) -> str:
    if not parser.num_errors:
        return "no reason was given"
    error = parser.get_error(0)
    where = f"node {error.node_name()} ({error.node_operator()}): " if error.node_operator() else ""
    return where + " ".join(error.desc().split())[:300]
