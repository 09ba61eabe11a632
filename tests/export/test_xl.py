"""SDXL in bundles: two text encoders in one graph, pooled embeddings and sizes as inputs of the UNet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapedit import AdapEditPipeline
from adapedit.loading import load_model
from adapedit.model import checkpoint_of
from adapedit_engine.bundle import Bundle
from adapedit_engine.runners.tensorrt import load, why_not_load
from adapedit_engine.workloads import workload_of
from adapedit_export.export import export_bundle
from adapedit_export.options import ExportOptions
from adapedit_export.tensorrt import BuildOptions, build_plans
from tests.helpers.edits import SOURCE, TARGET, grey_levels
from tests.helpers.tiny_model import save_tiny_xl

SMALLER: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "attention_head_dim": (2, 4),
}
"""A level less, which is faster to trace."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_xl(tmp_path_factory.mktemp("xl"), unet=SMALLER)


@pytest.fixture(scope="module")
def bundle(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Held to PyTorch as it is made, on random inputs and along an edit."""
    out = tmp_path_factory.mktemp("bundles") / "xl"
    return export_bundle(checkpoint_of(load_model(folder)), out, ExportOptions(check_steps=2))


def test_the_graphs_take_and_give_what_sdxl_has_besides(bundle):
    text, unet = bundle.manifest.graphs["text_encoder"], bundle.manifest.graphs["unet"]
    assert [tensor.name for tensor in text.inputs] == ["input_ids", "input_ids_2"]
    assert {t.name: t.shape for t in text.outputs} == {
        "hidden_states": ("rows", 20, 72),
        "text_embeds": ("rows", 24),
    }
    shapes = {tensor.name: tensor.shape for tensor in unet.inputs}
    assert (shapes["text_embeds"], shapes["time_ids"]) == (("rows", 24), ("rows", 6))
    assert (bundle.folder / "tokenizer_2").is_dir() and bundle.manifest.text_encoders == 2


@pytest.mark.parametrize("method", ["adapedit", "prompt-to-prompt"])
def test_onnx_runtime_edits_as_pytorch_does(bundle, folder, method):
    pipes = AdapEditPipeline.from_pretrained(folder), AdapEditPipeline.from_bundle(bundle.folder)
    one, other = (pipe(SOURCE, TARGET, method=method, num_inference_steps=3, seed=2) for pipe in pipes)
    assert grey_levels(one.source_image, other.source_image) <= 1
    assert grey_levels(one.target_image, other.target_image) <= 1
    assert grey_levels(one.source_image, one.target_image) > 1


@pytest.mark.skipif(why_not_load("tensorrt-rtx") is not None, reason="TensorRT for RTX is not installed")
@pytest.mark.slow
def test_the_graphs_become_plans(bundle):
    """Built without a GPU, for none is needed to build; it is not run."""
    options = BuildOptions(
        workload=workload_of("latency"), compute_capability="8.9", graphs=("unet", "text_encoder")
    )
    for record in build_plans(bundle, load("tensorrt-rtx"), options):
        assert record.layers > 0 and (bundle.folder / "plans" / record.file_name).stat().st_size > 0
