"""Eight bits in the UNet's convolutions and matrices, by ONNX Runtime's quantiser, calibrated on prompts of the user's.

Attention's products and the first and the last convolution keep their precision, and so does all that depends on the
timestep alone; text encoder and VAE are left as they are.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapedit_engine.bundle import Bundle
from adapedit_engine.manifest import GraphSpec
from adapedit_engine.models.layers import SIZES, ModelSpecs
from adapedit_engine.models.text import HIDDEN
from adapedit_engine.plan import EditPlan
from adapedit_engine.runners.base import open_bundle_runner
from adapedit_engine.runners.graphs import BundleRunner, Session
from adapedit_engine.schedule import Schedule
from adapedit_engine.scheduler import denoise
from adapedit_export.onnx import check, quiet
from adapedit_export.options import ExportError, Precision
from adapedit_export.parity import unedited_plan

STEPS = 10
"""Of the trajectory of each prompt, all of which are looked at: ranges differ from step to step."""

Call = dict[str, np.ndarray]


def plans_of(
    specs: ModelSpecs,
    told: Mapping[str, Tensor],
    schedule: Schedule,
    pixels: tuple[int, int],
    size: tuple[int, int],
    guidance_scale: float,
) -> list[EditPlan]:
    """Plans of unedited tracks, two a plan.

    told: what text encoders make of the empty prompt and of those to calibrate on, [1 + prompts, ...] each. pixels:
    height and width of the pictures. size: of latents. Raises `ExportError` for a model that takes a picture, too.
    """
    if specs.in_channels != specs.out_channels:
        raise ExportError(
            f"--quantize calibrates on prompts, and this model takes {specs.in_channels} channels: latents and a "
            "picture; leave --quantize out"
        )
    generator = torch.Generator().manual_seed(0)
    found = []
    for some in torch.arange(1, len(told[HIDDEN])).split(2):
        rows = {name: torch.stack([v[[0, i]] for i in some.tolist()]) for name, v in told.items()}
        if SIZES in specs.conditioning:
            rows[SIZES] = torch.tensor([*pixels, 0, 0, *pixels]).float().expand(len(some), 2, -1)
        found.append(unedited_plan(specs, schedule, rows, size, guidance_scale, generator))
    return found


def record(bundle: Bundle, plans: Sequence[EditPlan]) -> list[Call]:
    """The inputs of every call of the UNet along the plans, in ONNX Runtime."""
    calls: list[Call] = []
    runner = open_bundle_runner(bundle)

    def load(graph: str) -> Session:
        session = runner.load(graph)
        return _Recorder(session, calls) if graph == "unet" else session

    with BundleRunner(bundle, runner.name, load, runner.device, runner.capabilities) as recording:
        for plan in plans:
            denoise([plan], recording)
    recording.close()
    return calls


class _Recorder:
    """A session that keeps the inputs of every run."""

    def __init__(self, session: Session, calls: list[Call]) -> None:
        self.spec, self._session, self._calls = session.spec, session, calls

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str] | None = None) -> dict[str, Tensor]:
        before = self._calls[-1] if self._calls else {}
        call: Call = {}
        for name, tensor in inputs.items():
            given, last = tensor.numpy(), before.get(name)
            # Keys and values of the prompt are the same in every step, and megabytes.
            call[name] = last if last is not None and np.array_equal(given, last) else given.copy()
        self._calls.append(call)
        return self._session.run(inputs, outputs)

    def close(self) -> None:
        self._session.close()


def layers(model: Any) -> list[str]:
    """Names of an ONNX model's convolutions and products with weights, without the first and the last convolution.

    Products of two activations, which attention has, are not among them, nor are `Gemm`s, which the timestep has.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    nodes = [n for n in model.graph.node if n.op_type in ("Conv", "MatMul") and n.input[1] in weights]
    convolutions = [node.name for node in nodes if node.op_type == "Conv"]
    if not convolutions or not all(node.name for node in nodes):
        raise ExportError("the UNet's graph has no convolutions with names: export it with another opset")
    return [node.name for node in nodes if node.name not in (convolutions[0], convolutions[-1])]


def quantise(folder: Path, spec: GraphSpec, calls: Sequence[Call], precision: Precision) -> GraphSpec:
    """Write a graph of `folder` anew in eight bits, and return what it then is. calls: inputs to calibrate on.

    int8: activations without sign and weights with, a scale for each channel, as CPUs multiply them. fp8: E4M3 with a
    scale for each tensor, as TensorRT takes it. Raises `ExportError` where the quantiser or ONNX's checker refuses it.
    """
    import onnx
    from onnxruntime import quantization as q

    path, part = folder / spec.file, folder / "eight-bits"
    int8, large = precision is Precision.INT8, (folder / f"{spec.file}.data").is_file()
    # Convolutions in eight bits are run as such by ONNX Runtime where their outputs are in eight bits, too.
    more: dict[str, Any] = {"OpTypesToExcludeOutputQuantization": ["MatMul"] if int8 else ["Conv", "MatMul"]}
    part.mkdir()
    try:
        if not int8:
            more["TensorQuantOverrides"] = _scales(path, part, calls)
        with quiet():
            q.quantize_static(
                path,
                part / spec.file,
                _Calls(calls if int8 else calls[:1]),
                op_types_to_quantize=["Conv", "MatMul"],
                nodes_to_quantize=layers(onnx.load(path, load_external_data=False)),
                per_channel=int8,
                activation_type=q.QuantType.QUInt8 if int8 else q.QuantType.QFLOAT8E4M3FN,
                weight_type=q.QuantType.QInt8 if int8 else q.QuantType.QFLOAT8E4M3FN,
                calibrate_method=q.CalibrationMethod.MinMax if int8 else q.CalibrationMethod.Distribution,
                use_external_data_format=large,
                extra_options={"WeightSymmetric": True, **more},
            )
        check(part / spec.file)
    except ExportError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ExportError(f"{spec.file} can't be brought to {precision.value}: {reason}") from error
    (folder / f"{spec.file}.data").unlink(missing_ok=True)
    for file in part.iterdir():
        os.replace(file, folder / file.name)
    shutil.rmtree(part)
    model = onnx.load(path, load_external_data=False)
    (opset,) = (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return replace(spec, nodes=len(model.graph.node), opset=opset)


def _scales(path: Path, part: Path, calls: Sequence[Call]) -> dict[str, Any]:
    """For every activation the scale that lets its largest value be the largest of E4M3.

    The quantiser's own, from standard deviations, cuts off what is more than 4.5 of them away: several times the loss.
    """
    from ml_dtypes import float8_e4m3fn
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    large = path.with_suffix(".onnx.data").is_file()
    kinds, augmented = ["Conv", "MatMul"], str(part / "augmented.onnx")
    calibrator = create_calibrator(path, kinds, augmented, CalibrationMethod.MinMax, large)
    calibrator.collect_data(_Calls(calls))
    found, largest = calibrator.compute_data(), float(torch.finfo(torch.float8_e4m3fn).max)
    for file in part.iterdir():
        file.unlink()
    zero = np.array(0, float8_e4m3fn)
    scales = {name: np.abs(tensor.range_value).max() / largest for name, tensor in found.items()}
    return {
        name: [{"scale": np.array(scale, np.float32), "zero_point": zero}] for name, scale in scales.items()
    }


class _Calls:
    """Recorded calls as the quantiser reads them, once."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._left = iter(calls)

    def get_next(self) -> Call | None:
        return next(self._left, None)
