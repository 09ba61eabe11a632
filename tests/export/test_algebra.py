"""Edited attention as one layer's graph, over random controls: against probabilities that are formed and edited."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapedit_engine.runners.tensorrt import load, why_not_load
from adapedit_export.options import Precision
from adapedit_kernels import edited_attention, prepare_values
from tests.kernels.inputs import AttentionShape, assert_close, attention_inputs

pytest.importorskip("onnxscript")
from adapedit_export.rewrite import rewrite

ort = pytest.importorskip("onnxruntime")

SHAPE, EDITED = AttentionShape(4, 2, 9, 77, 8), [3, 1]
SCALE = 0.25  # ONNX has it, and its root, in float32, which holds these exactly
DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16}


class Layer(nn.Module):
    """A cross-attention layer from values that are not prepared yet."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        edited_row: Tensor,
        source_row: Tensor,
        token_map: Tensor,
        own_weight: Tensor,
        spatial_weight: Tensor,
        spatial_map: Tensor,
    ) -> Tensor:
        prepared = prepare_values(
            value,
            edited_row=edited_row,
            token_map=token_map,
            own_weight=own_weight,
            spatial_weight=spatial_weight,
        )
        rows: Any = {"edited_row": edited_row, "source_row": source_row, "spatial_map": spatial_map}
        return edited_attention(query, key, value, heads=SHAPE.heads, scale=SCALE, prepared=prepared, **rows)


def inputs(dtype: torch.dtype, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """What the layer is given, and what comes out of it by loops in float64."""
    made = attention_inputs(SHAPE, dtype, [seed % 4, 2], edited_row=EDITED, seed=seed)
    return dict(zip(("query", "key", "value"), made.tensors, strict=True)) | made.edits, made.by_loops(SCALE)[
        0
    ]


@pytest.fixture(scope="module", params=DTYPES)
def graph(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[torch.dtype, Path]:
    dtype, path = DTYPES[request.param], tmp_path_factory.mktemp("layer") / f"{request.param}.onnx"
    given = inputs(dtype, 0)[0]
    program = torch.onnx.export(
        Layer().eval(), kwargs=given, dynamo=True, opset_version=23, input_names=list(given), verbose=False
    )
    assert program is not None
    rewrite(program.model, Precision.FLOAT16 if dtype == torch.float16 else Precision.FLOAT32)
    attention = [node for node in program.model.graph if node.op_type == "Attention"]
    assert len(attention) == 2 and all("q_num_heads" in node.attributes for node in attention)
    program.save(path)
    return dtype, path


def test_onnx_runtime_gives_what_edited_probabilities_give(graph: tuple[torch.dtype, Path]) -> None:
    dtype, path = graph
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for seed in range(8):
        given, wanted = inputs(dtype, seed)
        (found,) = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
        assert_close(torch.from_numpy(found), wanted, dtype)


def test_tensorrt_for_rtx_builds_it(graph: tuple[torch.dtype, Path]) -> None:
    dtype, path = graph
    if (reason := why_not_load("tensorrt-rtx")) is not None:
        pytest.skip(reason)
    if dtype == torch.float64:
        pytest.skip("TensorRT has no float64")
    from adapedit_export.tensorrt import polygraphy_backend

    with polygraphy_backend(load("tensorrt-rtx")) as backend:
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        network = backend.SetDecomposableAttentions(
            backend.NetworkFromOnnxPath(str(path), strongly_typed=True)
        )
        assert backend.EngineBytesFromNetwork(network, CreateConfigRTX(compute_capabilities=[(8, 9)]))()
