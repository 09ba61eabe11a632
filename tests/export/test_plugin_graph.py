"""The graph for full TensorRT's plug-in: the same UNet, with a node for every layer of edited attention."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from adapedit.bundle import checkpoint_of
from adapedit.model import load_model
from adapedit_engine.bundle import PLUGIN_GRAPH, Bundle
from adapedit_engine.manifest import FileSpec
from adapedit_engine.plan_files import PlanKey, PlanRecord, find_plan, has_plan, is_stale, write_record
from adapedit_engine.processors import split_heads
from adapedit_engine.runners.tensorrt_library import TensorRT
from adapedit_export import onnx as onnx_module
from adapedit_export.export import _Exporter
from adapedit_export.options import ExportError, ExportOptions
from adapedit_export.plugin_graph import CONTROLS
from adapedit_export.reference import Reference
from adapedit_export.tensorrt.build import BuildOptions, build_plans
from adapedit_export.tensorrt.workloads import WORKLOADS, profiles_of
from adapedit_kernels import edited_attention_with_maps


class EditedAttention(OpRun):
    """The plug-in's arithmetic behind the node, for ONNX's own evaluator."""

    op_domain = "adapedit"

    def _run(self, *tensors: Any, **attributes: Any) -> Any:
        given = [torch.from_numpy(np.ascontiguousarray(tensor)) for tensor in tensors]
        heads = attributes["heads"]
        query, key, value = (split_heads(tensor, heads) for tensor in given[:3])
        mixed, maps = edited_attention_with_maps(
            query, key, value, **dict(zip(CONTROLS, given[3:], strict=True)), scale=attributes["scale"]
        )
        return mixed.transpose(1, 2).flatten(2).numpy(), maps.numpy()


@pytest.fixture(scope="module")
def with_plugin(bundle, tiny_folder, tmp_path_factory) -> Bundle:
    """The tiny model's bundle with one graph more, and weights outside, as those of large models are."""
    folder = Path(shutil.copytree(bundle.folder, tmp_path_factory.mktemp("plugin") / "bundle"))
    exporter = _Exporter(checkpoint_of(load_model(tiny_folder)), ExportOptions(plugin=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_module, "EXTERNAL_FROM", 1 << 16)
        graphs = {name: exporter.write(name, folder) for name in ("unet", PLUGIN_GRAPH)}
    manifest = exporter.manifest(bundle.manifest.graphs | graphs, folder)
    (folder / "manifest.json").write_text(manifest.to_json())
    return Bundle.open(folder)


def test_every_cross_attention_is_a_node_with_the_plug_ins_name(with_plugin):
    model = onnx.load(str(with_plugin.graph_path(PLUGIN_GRAPH)), load_external_data=False)
    nodes = [node for node in model.graph.node if node.domain == "adapedit"]
    assert len(nodes) == len(with_plugin.manifest.specs.cross_layers)
    for node in nodes:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert node.op_type == "EditedAttention" and len(node.input) == 8 and len(node.output) == 2
        assert attributes["plugin_namespace"] == b"adapedit" and attributes["plugin_version"] == b"1"
        assert attributes["heads"] > 0 and 0 < attributes["scale"] < 1
    assert not any(node.op_type == "Softmax" for node in model.graph.node)
    plain, plugin = with_plugin.graph("unet"), with_plugin.graph(PLUGIN_GRAPH)
    assert (plugin.inputs, plugin.outputs) == (plain.inputs, plain.outputs) and plugin.nodes < plain.nodes


def test_it_computes_what_pytorch_does(with_plugin):
    call = Reference.load(with_plugin.folder).calls["unet"]
    spec = with_plugin.graph(PLUGIN_GRAPH)
    model = onnx.load(str(with_plugin.graph_path(PLUGIN_GRAPH)))
    found = ReferenceEvaluator(model, new_ops=[EditedAttention]).run(
        None, {t.name: call[t.name].numpy() for t in spec.inputs}
    )
    for tensor, got in zip(spec.outputs, found, strict=True):
        wanted = call[tensor.name].numpy()
        assert np.linalg.norm(got - wanted) < 1e-5 * np.linalg.norm(wanted)


def test_weights_are_on_disk_once(with_plugin):
    folder = with_plugin.folder
    assert (folder / "unet.onnx.data").is_file() and not (folder / f"{PLUGIN_GRAPH}.onnx.data").exists()
    large = [
        value.const_value
        for value in onnx_ir.load(folder / f"{PLUGIN_GRAPH}.onnx").graph.initializers.values()
        if value.const_value.nbytes > 1 << 10
    ]
    assert large and all(str(tensor.location) == "unet.onnx.data" for tensor in large)
    # So the plan of one is stale where the other's weights were changed.
    files = dict(with_plugin.manifest.files)
    files["unet.onnx.data"] = replace(files["unet.onnx.data"], sha256="0" * 64)
    changed = replace(with_plugin, manifest=replace(with_plugin.manifest, files=files))
    assert changed.graph_hash(PLUGIN_GRAPH) != with_plugin.graph_hash(PLUGIN_GRAPH)


def test_its_plan_is_told_from_the_plain_ones(with_plugin, bundle):
    profiles = profiles_of(PLUGIN_GRAPH, with_plugin.graph(PLUGIN_GRAPH), WORKLOADS["latency"])
    assert profiles == profiles_of("unet", with_plugin.graph("unet"), WORKLOADS["latency"])
    library = {"family": "tensorrt", "version": "11.0", "compute_capability": "8.9"}
    key = PlanKey(
        graph=PLUGIN_GRAPH,
        onnx_sha256=with_plugin.graph_hash(PLUGIN_GRAPH),
        workload="latency",
        profiles=profiles,
        **library,
    )
    record = PlanRecord(
        key=key, file=FileSpec(bytes=0, sha256=""), layers=1, activation_bytes=0, build_seconds=0
    )
    assert not has_plan(with_plugin, PLUGIN_GRAPH, **library)
    (with_plugin.folder / "plans").mkdir()
    write_record(with_plugin.folder / "plans", record)
    assert has_plan(with_plugin, PLUGIN_GRAPH, **library) and not has_plan(with_plugin, "unet", **library)
    assert find_plan(with_plugin, PLUGIN_GRAPH, **library) == record
    assert not has_plan(with_plugin, PLUGIN_GRAPH, **{**library, "version": "10.0"})
    # A bundle without that graph has no use for it.
    assert is_stale(bundle, record)


@pytest.mark.parametrize(
    ("flavour", "message"),
    [
        ("tensorrt-rtx", "the plug-in is for full TensorRT, this is tensorrt-rtx; build without --plugin"),
        ("tensorrt", "has no graph for the plug-in; export it with --plugin"),
    ],
)
def test_where_it_cannot_be_used(bundle, monkeypatch, flavour, message):
    monkeypatch.setattr("adapedit_export.tensorrt.build.target_capability", lambda *_: "8.9")
    library = TensorRT(flavour=flavour, module=None, version="11.0")
    with pytest.raises(ExportError, match=message):
        build_plans(bundle, library, BuildOptions(workload=WORKLOADS["latency"], plugin=True))
