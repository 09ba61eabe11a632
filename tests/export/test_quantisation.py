"""Eight bits: calibrated on prompts, close to float32 on every runner here; what can't be done is refused at once."""

from __future__ import annotations

import onnx
import pytest

from adapedit.cli.main import run
from adapedit_engine.bundle import Bundle
from adapedit_engine.manifest import GraphSpec
from adapedit_engine.runners.base import open_bundle_runner, why_not
from adapedit_engine.workloads import WORKLOADS
from adapedit_export.check import check_runner
from adapedit_export.options import ExportError, ExportOptions, Precision
from adapedit_export.parity import Reference
from adapedit_export.quantisation import layers, quantise
from adapedit_export.tensorrt import BuildOptions, build_plans
from tests.helpers.edits import SOURCE, TARGET


@pytest.fixture(scope="module")
def eight_bits(tiny_folder, tmp_path_factory) -> Bundle:
    out = tmp_path_factory.mktemp("bundles")
    (out / "prompts.txt").write_text(f"{SOURCE}\n\n{TARGET}\n a small red dog \n")
    command = ["export", str(tiny_folder), "--out", str(out / "int8"), "--quantize", "int8"]
    assert run([*command, "--calibrate", str(out / "prompts.txt"), "--check-steps", "2"]) == 0
    return Bundle.open(out / "int8")


def operators(bundle: Bundle) -> list[str]:
    return [node.op_type for node in onnx.load(bundle.graph_path("unet")).graph.node]


def test_the_bundle_says_so_and_is_whole(eight_bits):
    manifest = eight_bits.manifest
    assert manifest.precision == "int8" and manifest.graphs["unet"].nodes == len(operators(eight_bits))
    kinds = {t.data_type for t in onnx.load(eight_bits.graph_path("unet")).graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    assert 0 < manifest.parity["edit"]["pictures"].mean < 40
    assert not list(eight_bits.folder.glob("eight-bits*"))
    for graph in set(manifest.graphs) - {"unet"}:
        assert "QuantizeLinear" not in {n.op_type for n in onnx.load(eight_bits.graph_path(graph)).graph.node}


def test_attention_and_the_ends_keep_their_precision(eight_bits, bundle):
    before = onnx.load(bundle.graph_path("unet")).graph
    weights = {tensor.name for tensor in before.initializer}
    chosen = set(layers(onnx.load(bundle.graph_path("unet"))))
    kept = [n for n in before.node if n.op_type in ("Conv", "MatMul") and n.name not in chosen]
    convolutions = [node.name for node in before.node if node.op_type == "Conv"]
    assert {n.name for n in kept if n.op_type == "Conv"} == {convolutions[0], convolutions[-1]}
    assert all(n.input[1] not in weights for n in kept if n.op_type == "MatMul")
    after = {node.name: node for node in onnx.load(eight_bits.graph_path("unet")).graph.node}
    assert all(after[node.name].input[1] == node.input[1] for node in kept)
    assert all(after[name].input[1].endswith("DequantizeLinear_Output") for name in chosen)


@pytest.mark.parametrize("runner", ["onnxruntime", "openvino"])
def test_calls_are_near_those_of_pytorch(eight_bits, runner):
    if (reason := why_not(runner)) is not None:
        pytest.skip(reason)
    findings = check_runner(open_bundle_runner(eight_bits, runner), Reference.load(eight_bits.folder))
    ratios = {finding.output: finding.ratio for finding in findings if finding.stage == "unet"}
    assert set(ratios) == {tensor.name for tensor in eight_bits.graph("unet").outputs}
    # The tiny model has weights of chance, which lose more than trained ones.
    assert all(1e-4 < ratio < 0.5 for ratio in ratios.values())
    assert all(finding.ratio < 1e-4 for finding in findings if finding.stage not in ("unet", "edit"))


def test_eight_bits_of_a_float_are_written_and_pass_onnx_s_checker(bundle, tmp_path):
    call = Reference.load(bundle.folder).calls["unet"]
    spec: GraphSpec = bundle.graph("unet")
    (tmp_path / spec.file).write_bytes(bundle.graph_path("unet").read_bytes())
    inputs = {tensor.name: call[tensor.name].numpy() for tensor in spec.inputs}
    made = quantise(tmp_path, spec, [inputs], Precision.FP8)
    model = onnx.load(tmp_path / spec.file)
    kinds = {t.data_type for t in model.graph.initializer}
    assert onnx.TensorProto.FLOAT8E4M3FN in kinds and made.nodes == len(model.graph.node) > spec.nodes
    assert [path.name for path in tmp_path.iterdir()] == [spec.file]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--quantize", "int8"], "there are 0 prompts to calibrate on for int8; int8 and fp8 want some"),
        (
            ["--quantize", "fp8", "--precision", "float16"],
            "--quantize fp8 is for --precision float32, got float16",
        ),
        (["--quantize", "int8", "--calibrate", "nowhere.txt"], "nowhere.txt can't be read"),
        (["--calibrate", "prompts.txt"], "there are 1 prompts to calibrate on for float32"),
    ],
)
def test_mistakes_are_one_line_before_any_work(more, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a red dog\n")
    assert run(["export", "builtin", "--out", "out", *more]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_graph_without_convolutions_and_plans_of_int8_are_refused(eight_bits):
    with pytest.raises(ExportError, match="has no convolutions with names"):
        layers(onnx.load(eight_bits.graph_path("text_encoder")))
    options = BuildOptions(workload=WORKLOADS["latency"], compute_capability="8.9")
    with pytest.raises(ExportError, match="is in int8 as CPUs multiply it, .*; export with --quantize fp8"):
        build_plans(eight_bits, None, options)
    with pytest.raises(ExportError, match="there are 0 prompts"):
        ExportOptions(precision=Precision.FP8)
