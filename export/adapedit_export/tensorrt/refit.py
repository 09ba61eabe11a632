"""A plan with other weights: fine-tuned models have the graph, and take the plan, of the one they came from."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from adapedit_engine.bundle import PLANS_FOLDER, Bundle, FileSpec, sha256_of
from adapedit_engine.plan_files import PlanRecord, is_stale, read_plan, read_records, write_record
from adapedit_engine.runners import RunnerError
from adapedit_engine.runners.tensorrt import Messages, TensorRT, deserialise
from adapedit_export.options import ExportError


def refit_plans(source: Bundle, bundle: Bundle, tensorrt: TensorRT) -> list[PlanRecord]:
    """Every plan of `source` that this library can refit, with the weights of `bundle`, in `bundle`.

    Raises `ExportError` where there is none, and what `refit_plan` raises.
    """
    library = (tensorrt.family, tensorrt.version)
    records = [
        record
        for record in read_records(source)
        if record.key.refit and (record.key.family, record.key.version) == library
    ]
    fresh = [record for record in records if not is_stale(source, record)]
    if not fresh:
        raise ExportError(
            f"{source.folder} has no plan of {' '.join(library)} whose weights can be exchanged; "
            f"build one: adapedit build {source.folder} --refit"
        )
    return [refit_plan(record, source, bundle, tensorrt) for record in fresh]


def refit_plan(record: PlanRecord, source: Bundle, bundle: Bundle, tensorrt: TensorRT) -> PlanRecord:
    """Put the weights of `bundle` into a plan that `source` was built with and left exchangeable.

    Needs a GPU, where plans are loaded. Raises `RunnerError` or `ExportError` in one line.
    """
    if not record.key.refit:
        raise ExportError(f"{record.file_name} was built without refit; build it again with --refit")
    if not torch.cuda.is_available():
        raise RunnerError("a refit loads the plan, which needs an NVIDIA GPU; build a plan of its own here")
    start = time.perf_counter()
    trt, messages = tensorrt.module, Messages(tensorrt)
    engine = deserialise(tensorrt, read_plan(source, record), record.file_name)
    refitter = trt.Refitter(engine, messages.logger)
    fed = trt.OnnxParserRefitter(refitter, messages.logger).refit_from_file(
        str(bundle.graph_path(record.key.graph))
    )
    if not fed or not refitter.refit_cuda_engine():
        raise ExportError(f"{record.file_name} does not take these weights: {messages.first()}")
    key = replace(record.key, onnx_sha256=bundle.graph_hash(record.key.graph))
    folder = bundle.folder / PLANS_FOLDER
    folder.mkdir(exist_ok=True)
    path = folder / f"{key.name}.plan"
    path.write_bytes(bytes(engine.serialize()))
    renewed = replace(
        record,
        key=key,
        file=FileSpec(bytes=path.stat().st_size, sha256=sha256_of(path)),
        build_seconds=round(time.perf_counter() - start, 3),
    )
    write_record(folder, renewed)
    return renewed
