"""The export: what stands in a bundle, that it is checked, and what is refused before any work."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

from adapedit.cli.main import run
from adapedit.loading import load_model
from adapedit.model import checkpoint_of
from adapedit_engine.bundle import Bundle
from adapedit_engine.manifest import GRAPHS, BundleError
from adapedit_engine.models.unet import INPUT_NAMES, OUTPUT_NAMES
from adapedit_engine.runners.base import BUNDLE_RUNNERS, RunnerError, open_bundle_runner, why_not
from adapedit_export import check
from adapedit_export import export as export_module
from adapedit_export.check import Finding
from adapedit_export.export import export_bundle, refuse_wrong
from adapedit_export.options import ExportError, ExportOptions, Precision
from adapedit_export.parity import REFERENCE_FILE, Reference

CONTROLS = INPUT_NAMES[3:]


def graph_of(bundle: Bundle, name: str) -> onnx.GraphProto:
    return onnx.load(str(bundle.graph_path(name))).graph


def test_the_unet_takes_every_control_and_gives_maps_and_features(bundle):
    unet = bundle.graph("unet")
    assert [t.name for t in unet.inputs] == ["sample", "timestep", "projected_text", *CONTROLS]
    assert [t.name for t in unet.outputs] == list(OUTPUT_NAMES)
    shapes = {t.name: t.shape for t in unet.inputs + unet.outputs}
    assert shapes["sample"] == ("rows", 4, 8, 8) and shapes["self_key_row"][1] == "rows"
    assert shapes["cross_attention_maps"] == ("maps", 16, 20) and shapes["token_map"] == ("edits", 20, 20)


def test_the_batch_is_open_in_the_file_itself(bundle):
    for name in GRAPHS:
        graph = graph_of(bundle, name)
        for value in (*graph.input, *graph.output):
            sides = [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
            assert {"rows", "edits", "maps"} & set(sides), f"{name}: {value.name} is {sides}"


def test_every_input_is_read_by_some_node(bundle):
    graph = graph_of(bundle, "unet")
    read = {name for node in graph.node for name in node.input}
    assert {value.name for value in graph.input} <= read


def test_the_graph_is_clean(bundle):
    model = onnx.load(str(bundle.graph_path("unet")))
    assert model.opset_import[0].version == 23 and not model.functions
    used = {name for node in model.graph.node for name in node.input} | set(OUTPUT_NAMES)
    assert all(set(node.output) & used for node in model.graph.node), "a node whose outputs nobody reads"
    assert all(value.name in used for value in model.graph.initializer)
    kinds = [node.op_type for node in model.graph.node]
    # Of each of four layers one in self-attention, and in cross-attention one of all rows and one of edited ones.
    assert "Identity" not in kinds and "Constant" not in kinds and kinds.count("Attention") == 4 * 3
    assert "GroupNormalization" not in kinds and "InstanceNormalization" in kinds
    # Heads together, gated units without a split: those left split prompt, values, and edits by source and by S.
    assert all(
        any(a.name == "q_num_heads" for a in n.attribute)
        for n in model.graph.node
        if n.op_type == "Attention"
    )
    assert kinds.count("Split") == 2 + 4 * 2
    # Where a node was traced from is a path of the machine that exported it.
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_the_result_of_the_check_is_in_the_manifest(bundle):
    parity = bundle.manifest.parity
    assert set(parity) == {*GRAPHS, "edit"}
    assert parity["unet"]["noise_pred"].ratio < 1e-5
    assert parity["edit"]["pictures"].largest <= 1 and parity["edit"]["maps"].largest < 1e-4


def test_the_manifest_names_every_file_and_comes_back_as_it_was(bundle):
    there = {p.relative_to(bundle.folder).as_posix() for p in bundle.folder.rglob("*") if p.is_file()}
    assert there - {"manifest.json"} == set(bundle.manifest.files)
    assert Bundle.open(bundle.folder).manifest == bundle.manifest
    assert {"torch", "onnx", "onnxruntime", "diffusers"} <= set(bundle.manifest.versions)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 17}, "height is 17, wanted a multiple of 4"),
        ({"height": 0}, "height is 0, wanted a multiple of 4"),
        ({"width": -8}, "width is -8, wanted a multiple"),
        ({"rows": 2}, "rows is 2, wanted 4 to 63: an edit takes four"),
        ({"opset": 11}, "opset is 11, wanted one of 21, 22, 23"),
        ({"check_steps": -1}, "check_steps must be at least 0"),
    ],
)
def test_options_are_refused_before_any_work(tiny_folder, tmp_path, changes, message):
    with pytest.raises(ExportError, match=message):
        export_bundle(checkpoint_of(load_model(tiny_folder)), tmp_path / "b", ExportOptions(**changes))
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten(bundle, tiny_folder, tmp_path):
    checkpoint = checkpoint_of(load_model(tiny_folder))
    with pytest.raises(BundleError, match="is there already; choose another name, or pass --overwrite"):
        export_bundle(checkpoint, bundle.folder)
    (tmp_path / "mine").mkdir()
    with pytest.raises(BundleError, match="it is no bundle: choose another name"):
        export_bundle(checkpoint, tmp_path / "mine", overwrite=True)


def test_an_export_that_fails_leaves_nothing(tiny_folder, tmp_path, monkeypatch):
    def broken(*args: object) -> None:
        raise ExportError("the disk is on fire")

    monkeypatch.setattr(export_module, "trace", broken)
    with pytest.raises(ExportError, match="on fire"):
        export_bundle(checkpoint_of(load_model(tiny_folder)), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_graphs_run_in_polygraphy_s_own_runner_where_it_has_one(bundle):
    from polygraphy.backend.onnxrt import OnnxrtRunner

    for name, own in {"onnxruntime": False, "openvino": True}.items():
        if why_not(name) is None:
            made = check._runner_of(open_bundle_runner(bundle, name), "text_projection", {})
            assert isinstance(made, check._Own) is own and isinstance(made, OnnxrtRunner) is not own


def test_a_check_finds_what_is_wrong(bundle):
    call, runner = (
        Reference.load(bundle.folder).calls["text_projection"],
        open_bundle_runner(bundle, "onnxruntime"),
    )

    def found(wanted: torch.Tensor) -> Finding:
        calls = {"text_projection": call | {"projected_text": wanted}}
        (finding,) = check.check_runner(runner, Reference(calls=calls, edit=None, outcome={}))
        return finding

    right = call["projected_text"]
    assert found(right) and found(right).largest < 1e-4
    apart = found(right + 0.5)
    assert (
        not apart
        and apart.largest == pytest.approx(0.5, rel=1e-3)
        and apart.mean == pytest.approx(0.5, rel=1e-3)
    )
    nowhere = right.clone()
    nowhere[0, 0, 0] = float("nan")
    assert found(nowhere).largest == float("inf")
    with pytest.raises(
        RunnerError, match="text_projection gave projected_text of shape .*, the reference has"
    ):
        found(right[:1])


def test_a_graph_that_differs_is_no_bundle():
    finding = Finding(
        runner="onnxruntime",
        stage="unet",
        output="noise_pred",
        largest=2.0,
        mean=1.0,
        ratio=0.5,
        measure="ratio",
        limit=1e-4,
    )
    with pytest.raises(
        ExportError, match=r"the exported unet differs from PyTorch: noise_pred by 0.5 \(ratio\)"
    ):
        refuse_wrong([finding], Precision.FLOAT32)
    # In half precision it is written down, unless it is no number at all.
    refuse_wrong([finding], Precision.MIXED)
    with pytest.raises(ExportError, match="use precision mixed or float32"):
        refuse_wrong([replace(finding, largest=float("inf"))], Precision.FLOAT16)


@pytest.mark.parametrize("precision", [Precision.FLOAT16, Precision.MIXED])
def test_half_precision_stays_near(tiny_folder, tmp_path, precision):
    options = ExportOptions(precision=precision, check_steps=3)
    bundle = export_bundle(checkpoint_of(load_model(tiny_folder)), tmp_path / "b", options)
    dtypes = {t.name: t.dtype for t in bundle.graph("unet").inputs + bundle.graph("unet").outputs}
    half = "float16" if precision is Precision.FLOAT16 else "float32"
    assert dtypes["sample"] == dtypes["noise_pred"] == half
    # Controls and maps are as they are: the maps of half precision are summed over steps.
    assert dtypes["token_map"] == dtypes["cross_attention_maps"] == dtypes["timestep"] == "float32"
    assert bundle.manifest.parity["unet"]["noise_pred"].ratio < 5e-3
    assert bundle.manifest.parity["edit"]["pictures"].mean < 1
    stored = {tensor.data_type for tensor in graph_of(bundle, "unet").initializer if len(tensor.dims) == 4}
    assert stored == {onnx.TensorProto.FLOAT16}


@pytest.mark.slow
def test_a_fixed_batch_takes_smaller_calls_too(tiny_folder, tmp_path):
    options = ExportOptions(rows=6, check_steps=2)
    bundle = export_bundle(checkpoint_of(load_model(tiny_folder)), tmp_path / "b", options)
    assert bundle.manifest.rows == 6 and bundle.graph("unet").inputs[0].shape[0] == 6
    # Four rows of an edit were filled up to six.
    assert bundle.manifest.parity["edit"]["pictures"].largest <= 1


def test_the_commands_say_what_they_did(bundle, tmp_path, capsys):
    assert run(["inspect", str(bundle.folder), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert set(shown["graphs"]) == set(GRAPHS) and shown["precision"] == "float32" and shown["plans"] == []
    assert run(["check", str(bundle.folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    usable = {name for name in BUNDLE_RUNNERS if why_not(name) is None}
    assert {f["runner"] for f in found["findings"]} == usable >= {"onnxruntime", "openvino"}
    assert all(f["passed"] for f in found["findings"])
    assert "needs an NVIDIA GPU" in found["not_run"]["tensorrt-rtx"]
    assert run(["inspect", str(tmp_path)]) == 2
    assert "is no bundle (no manifest.json); make one with: adapedit export" in capsys.readouterr().err


def test_export_refuses_the_folder_first(bundle, capsys, monkeypatch):
    monkeypatch.setattr("adapedit.loading.load_model", lambda *_: pytest.fail("the model was loaded"))
    assert run(["export", "builtin", "--out", str(bundle.folder)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_unet_that_wants_more_is_refused_with_what_is_missing(tiny_folder: Path):
    from diffusers import UNet2DConditionModel

    checkpoint = checkpoint_of(load_model(tiny_folder))
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
        time_cond_proj_dim=8,
    )
    with pytest.raises(ValueError, match="wants a guidance embedding"):
        export_bundle(replace(checkpoint, unet=unet), "never")


def test_there_is_no_pickle_in_a_bundle_and_no_file_of_its_owner_alone(bundle):
    files = [path for path in bundle.folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".onnx", ".json", ".safetensors", ".txt", ".jinja"}
    umask = os.umask(0)
    os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b"{" + data[1:], lambda _: b""])
def test_a_reference_that_cannot_be_read_is_named(bundle, tmp_path, damage):
    data = (bundle.folder / REFERENCE_FILE).read_bytes()
    (tmp_path / REFERENCE_FILE).write_bytes(damage(data))
    with pytest.raises(BundleError, match=r"reference.safetensors can't be read .*export the model again"):
        Reference.load(tmp_path)
