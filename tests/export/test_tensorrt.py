"""Plans of TensorRT for RTX, which builds them on the CPU for GPUs that are not here."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

from adapedit.cli.main import run
from adapedit_engine.bundle import Bundle, find_plan, is_stale, read_plan, read_records
from adapedit_engine.manifest import GRAPHS, BundleError, PlanKey
from adapedit_engine.runners.base import RunnerError
from adapedit_engine.runners.tensorrt import TensorRT, deserialise, load, why_not_load
from adapedit_engine.workloads import WORKLOADS, profiles_of, workload_of
from adapedit_export.options import ExportError
from adapedit_export.tensorrt import (
    BuildOptions,
    build_plans,
    capabilities,
    refit_plan,
    refit_plans,
    serialise,
    target_capability,
)
from adapedit_kernels.errors import AdapEditError

pytestmark = pytest.mark.skipif(
    why_not_load("tensorrt-rtx") is not None, reason="TensorRT for RTX is not installed"
)
CAPABILITY = "8.9"
SMALL = ("text_projection", "text_encoder")


@pytest.fixture(scope="module")
def tensorrt() -> TensorRT:
    return load("tensorrt-rtx")


@pytest.fixture
def copied(bundle, tmp_path) -> Bundle:
    return Bundle.open(shutil.copytree(bundle.folder, tmp_path / "bundle"))


def options(**changes: object) -> BuildOptions:
    fields = {"workload": WORKLOADS["latency"], "compute_capability": CAPABILITY, "graphs": SMALL, **changes}
    return BuildOptions(**fields)  # type: ignore[arg-type]


def key_of(bundle: Bundle, graph: str, **changes: object) -> PlanKey:
    fields = {
        "graph": graph,
        "onnx_sha256": bundle.graph_hash(graph),
        "family": "tensorrt-rtx",
        "version": "0",
        "compute_capability": CAPABILITY,
        "workload": "latency",
        "profiles": profiles_of(graph, bundle.graph(graph), WORKLOADS["latency"]),
        **changes,
    }
    return PlanKey(**fields)  # type: ignore[arg-type]


def test_every_graph_of_the_built_in_model_becomes_a_plan(builtin_bundle, tensorrt, capsys):
    """Names, dtypes and open sides of what TensorRT parsed are held to the manifest while it builds."""
    command = ["build", str(builtin_bundle.folder), "--compute-capability", CAPABILITY, "--json"]
    assert run(command) == 0
    plans = {plan["key"]["graph"]: plan for plan in json.loads(capsys.readouterr().out)["plans"]}
    assert set(plans) == set(GRAPHS)
    assert plans["unet"]["layers"] > 1000 and plans["unet"]["activation_bytes"] > 1e6
    assert not any(plan["stale"] for plan in plans.values())
    records = {record.key.graph: record for record in read_records(builtin_bundle)}
    for graph, record in records.items():
        names = [t.name for t in builtin_bundle.graph(graph).inputs + builtin_bundle.graph(graph).outputs]
        plan = read_plan(builtin_bundle, record)
        assert all(name.encode() in plan for name in names)
        # TensorRT compares the plan's length with its header before it asks for a driver.
        with pytest.raises(RunnerError, match=r"plan\.header\.size == blobSize"):
            deserialise(tensorrt, plan[:-64], record.file_name)
    low, best, high = records["unet"].key.profiles[0]["sample"]
    assert (low[0], best[0], high[0]) == (1, 4, 4) and records["unet"].key.profiles[1]["timestep"] == (
        (5,),
        (6,),
        (6,),
    )


def test_a_plan_is_kept_until_something_it_depends_on_changes(copied, tensorrt):
    first = build_plans(copied, tensorrt, options(graphs=SMALL[:1]))[0]
    stamp = (copied.folder / "plans" / first.file_name).stat().st_mtime_ns
    again = build_plans(copied, tensorrt, options(graphs=SMALL[:1]))[0]
    assert again == first and (copied.folder / "plans" / first.file_name).stat().st_mtime_ns == stamp
    other = build_plans(copied, tensorrt, options(graphs=SMALL[:1], compute_capability="12.0"))[0]
    assert other.key.name != first.key.name and len(read_records(copied)) == 2
    found = find_plan(
        copied, SMALL[0], family="tensorrt-rtx", version=tensorrt.version, compute_capability=CAPABILITY
    )
    assert found == first


def test_a_stale_plan_is_never_found(copied, tensorrt):
    record = build_plans(copied, tensorrt, options(graphs=SMALL[:1]))[0]
    files = {**copied.manifest.files}
    files["text_projection.onnx"] = replace(files["text_projection.onnx"], sha256="0" * 64)
    changed = replace(copied, manifest=replace(copied.manifest, files=files))
    assert is_stale(changed, record) and not is_stale(copied, record)
    wanted = {"family": "tensorrt-rtx", "version": tensorrt.version, "compute_capability": CAPABILITY}
    with pytest.raises(BundleError, match=r"stale: the graph has changed.*build it: adapedit build"):
        find_plan(changed, "text_projection", **wanted)
    for name, other in (("version", "1.0"), ("compute_capability", "12.0"), ("family", "tensorrt")):
        with pytest.raises(BundleError, match="has no plan of text_projection for"):
            find_plan(copied, "text_projection", **{**wanted, name: other})


def test_a_truncated_plan_is_refused(copied, tensorrt):
    record = build_plans(copied, tensorrt, options(graphs=SMALL[:1]))[0]
    path = copied.folder / "plans" / record.file_name
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(BundleError, match=r"\.plan was cut short \(\d+ bytes, the manifest says \d+\)"):
        read_plan(copied, record)
    # And it is built again where it is asked for.
    assert build_plans(copied, tensorrt, options(graphs=SMALL[:1]))[0].file.bytes == path.stat().st_size


def test_what_is_no_plan_does_not_load(tensorrt):
    with pytest.raises(RunnerError, match=r"x.plan is no plan that tensorrt-rtx .* loads: "):
        deserialise(tensorrt, b"not a plan" * 1000, "x.plan")


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        (0, "empty memory buffer"),
        (32, "bufferSize"),
        (64, "cursor < blobSize"),
        (-1, "header.size == blobSize"),
    ],
)
def test_tensorrt_itself_refuses_a_plan_that_was_cut_short(copied, tensorrt, kept, reason):
    record = build_plans(copied, tensorrt, options(graphs=SMALL[:1]))[0]
    with pytest.raises(RunnerError, match=rf"is no plan that tensorrt-rtx .* loads: .*({reason})"):
        deserialise(tensorrt, read_plan(copied, record)[:kept], record.file_name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="plans load where there is a GPU")
def test_a_whole_plan_needs_a_driver_to_load(copied, tensorrt):
    record = build_plans(copied, tensorrt, options(graphs=SMALL[:1]))[0]
    with pytest.raises(RunnerError, match="CUDA driver"):
        deserialise(tensorrt, read_plan(copied, record), record.file_name)


def test_an_unsupported_operator_is_named(copied, tensorrt, tmp_path):
    path = tmp_path / "odd.onnx"
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("StringNormalizer", ["x"], ["y"], name="odd_one")
    graph = onnx.helper.make_graph(
        [node], "g", [value("x", onnx.TensorProto.STRING, [1])], [value("y", onnx.TensorProto.STRING, [1])]
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]), path)
    with pytest.raises(ExportError, match=r"does not take odd.onnx"):
        serialise(tensorrt, path, copied, key_of(copied, "text_projection"))


def test_a_network_that_is_not_the_manifests_is_refused(copied, tensorrt):
    with pytest.raises(
        BundleError, match="text_encoder: what TensorRT sees has other inputs .*: input_ids is missing"
    ):
        serialise(tensorrt, copied.graph_path("vae_decoder"), copied, key_of(copied, "text_encoder"))


def test_a_plan_for_the_lean_runtime_is_found_from_any_version(copied, tensorrt, monkeypatch):
    with pytest.raises(ExportError, match="--lean is for the full TensorRT and without --refit"):
        build_plans(copied, tensorrt, options(lean=True))
    monkeypatch.setattr("adapedit_export.tensorrt.serialise", lambda *_, **__: (b"plan", 1, 0))
    monkeypatch.setattr("adapedit_export.tensorrt.target_capability", lambda *_: CAPABILITY)
    full = TensorRT(flavour="tensorrt", module=None, version="10.0")
    (record,) = build_plans(copied, full, options(lean=True, graphs=SMALL[:1]))
    wanted = {"family": "tensorrt", "version": "11.0", "compute_capability": CAPABILITY}
    assert find_plan(copied, SMALL[0], **wanted, lean=True) == record
    with pytest.raises(BundleError, match=r"there: tensorrt 10.0 for 8.9 \(lean\)"):
        find_plan(copied, SMALL[0], **wanted)
    (plain,) = build_plans(copied, full, options(graphs=SMALL[:1]))
    assert plain.key.name != record.key.name


def test_polygraphy_is_asked_for_before_any_work(copied, tensorrt, monkeypatch):
    monkeypatch.setattr("adapedit_export.tensorrt.find_spec", lambda name: None)
    with pytest.raises(ExportError, match="needs the package polygraphy; pip install polygraphy"):
        build_plans(copied, tensorrt, options(graphs=SMALL[:1]))


def test_workloads_take_every_number_of_rows_up_to_their_last(bundle):
    for workload in WORKLOADS.values():
        taken = [rows for low, _, high in workload.ranges() for rows in range(low, high + 1)]
        assert taken == list(range(1, workload.rows[-1] + 1))
    key = key_of(bundle, "unet")
    for rows, profile in ((2, 0), (4, 0), (5, 1), (6, 1), (7, None)):
        shapes = {
            t.name: tuple(s if isinstance(s, int) else rows for s in t.shape)
            for t in bundle.graph("unet").inputs
        }
        assert key.profile_of(shapes) == profile


def test_names_that_are_unknown(tensorrt):
    with pytest.raises(AdapEditError, match="there is no workload 'batch'; use one of: latency, throughput"):
        workload_of("batch")
    with pytest.raises(
        ExportError, match=r"compute capability 3.5 is none that tensorrt-rtx .* names: 7.5, 8.0"
    ):
        target_capability(tensorrt, "3.5")
    with pytest.raises(
        ExportError, match=r"9\.0 is none that .*; an H100 or H200 takes the full TensorRT, or runner"
    ):
        target_capability(tensorrt, "9.0")
    assert {"8.0", "8.9", "12.0"} <= set(capabilities(tensorrt))
    with pytest.raises(RunnerError, match="there is no TensorRT 'trt'; use one of: tensorrt, tensorrt-rtx"):
        load("trt")


@pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a GPU it is the default")
def test_without_a_gpu_one_has_to_be_named(tensorrt):
    with pytest.raises(ExportError, match="name one with --compute-capability, such as 8.9"):
        target_capability(tensorrt, None)
    full = TensorRT(flavour="tensorrt", module=tensorrt.module, version="10.0")
    with pytest.raises(ExportError, match=r"builds for the GPU that it runs on \(none here\)"):
        target_capability(full, "8.9")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
def test_exchangeable_weights_need_a_gpu(copied, tensorrt):
    with pytest.raises(ExportError, match="--refit needs an NVIDIA GPU where the plan is built"):
        build_plans(copied, tensorrt, options(refit=True))
    record = build_plans(copied, tensorrt, options(graphs=SMALL[:1]))[0]
    with pytest.raises(ExportError, match="was built without refit; build it again with --refit"):
        refit_plan(record, copied, copied, tensorrt)
    with pytest.raises(ExportError, match=r"has no plan of tensorrt-rtx .* whose weights can be exchanged"):
        refit_plans(copied, copied, tensorrt)
    assert key_of(copied, "unet", refit=True).name != key_of(copied, "unet").name


def test_a_record_that_was_changed_is_refused(copied, tensorrt):
    record = build_plans(copied, tensorrt, options(graphs=SMALL[:1]))[0]
    path: Path = copied.folder / "plans" / f"{record.key.name}.json"
    path.write_text(path.read_text().replace(CAPABILITY, "12.0"))
    with pytest.raises(BundleError, match="describes another plan"):
        read_records(copied)
    path.write_text("{")
    with pytest.raises(BundleError, match="json: Invalid JSON.*; remove it and build again"):
        read_records(copied)


def test_layers_are_shown(bundle, capsys):
    assert run(["inspect", str(bundle.folder), "--layers", "text_projection"]) == 0
    said = capsys.readouterr().out
    assert "[Op: MatMul]" in said and "projected_text" in said
    assert run(["inspect", str(bundle.folder), "--layers", "unet2"]) == 2
    assert "has no graph 'unet2'; it has: text_encoder" in capsys.readouterr().err
