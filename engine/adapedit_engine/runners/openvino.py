"""OpenVINO: the same graphs on the CPU, in float32, or with the UNet in bfloat16; bundles with eight bits run in them.

The package and not ONNX Runtime's plug-in for it, which offers no device on a processor that is not Intel's.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from adapedit_engine.bundle import Bundle, check_graph
from adapedit_engine.manifest import GraphSpec
from adapedit_engine.runners.base import Capabilities, RunnerError
from adapedit_engine.runners.graphs import Buffers, BundleRunner, check_call

BFLOAT16 = "openvino-bfloat16"
TYPES = {"f32": "FLOAT", "f16": "HALF", "i64": "INT64"}
INSTALL = "pip install 'adapedit[openvino]'"


def why_not(runner: str, index: int = 0) -> str | None:
    """What keeps `runner` from running here, and how to mend it; None where nothing does."""
    if importlib.util.find_spec("openvino") is None:
        return f"needs the package openvino; {INSTALL}"
    if runner == BFLOAT16 and "BF16" not in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return "needs a processor that multiplies in bfloat16 (AVX512_BF16 or AMX); take runner openvino"
    return None


def open_bundle(bundle: Bundle, runner: str, device: torch.device) -> BundleRunner:
    """A runner of this file over a bundle, with as many threads as torch has now."""
    threads = torch.get_num_threads()
    rows = None if bundle.manifest.rows is None else (bundle.manifest.rows,)

    def load(graph: str) -> OpenVinoSession:
        precision = "bf16" if runner == BFLOAT16 and graph == "unet" else "f32"
        return OpenVinoSession(bundle, graph, precision=precision, threads=threads)

    capabilities = Capabilities(rows=rows, all_controls=True, exact=runner != BFLOAT16)
    return BundleRunner(bundle, runner, load, device, capabilities)


class OpenVinoSession:
    """One graph in OpenVINO, which reads and writes the memory of torch tensors."""

    def __init__(self, bundle: Bundle, graph: str, *, precision: str, threads: int) -> None:
        """precision: "f32" or "bf16", of what is between inputs and outputs.

        Raises `RunnerError` where the graph won't load, `BundleError` where it is not what the manifest says.
        """
        self.graph, path = graph, bundle.graph_path(graph)
        self.spec: GraphSpec = bundle.graph(graph)
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": precision,
        }
        try:
            compiled = _core().compile_model(str(path), "CPU", settings)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise RunnerError(f"OpenVINO can't load {path.name}: {reason}") from error
        seen = {
            kind: {port.any_name: (_type(port), _shape(port)) for port in ports}
            for kind, ports in (("inputs", compiled.inputs), ("outputs", compiled.outputs))
        }
        check_graph(str(path), self.spec, seen)
        self._request: Any = compiled.create_infer_request()
        self._buffers = Buffers(self.spec, torch.device("cpu"))

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str] | None = None) -> dict[str, Tensor]:
        """See `Session.run`. All outputs are computed, those wanted are returned."""
        import openvino

        sizes, wanted = check_call(self.graph, self.spec, inputs, outputs)
        results = {spec.name: self._buffers.take(spec.name, sizes) for spec in self.spec.outputs}
        # Held until the run is over: what has to be made contiguous lives in a tensor of its own.
        held = {name: tensor.contiguous() for name, tensor in inputs.items()} | results
        for name, tensor in held.items():
            self._request.set_tensor(name, openvino.Tensor(tensor.numpy(), shared_memory=True))
        self._request.infer()
        return {name: results[name] for name in wanted}

    def close(self) -> None:
        """Free the graph."""
        self._request = None


@cache
def _core() -> Any:
    import openvino

    return openvino.Core()


def _type(port: Any) -> str:
    name = port.element_type.get_type_name()
    return TYPES.get(name, name)


def _shape(port: Any) -> tuple[int, ...]:
    return tuple(side.get_length() if side.is_static else -1 for side in port.partial_shape)
