"""Edits through ONNX Runtime are those of PyTorch, whatever the controls; runners that can't run say why."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from adapedit import AdapEditPipeline
from adapedit.cli.main import run
from adapedit.images import MaskInput
from adapedit.loading import load_any, load_bundle
from adapedit_engine.bundle import describe_files
from adapedit_engine.manifest import BundleError, GraphSpec, TensorSpec
from adapedit_engine.runners.base import BUNDLE_RUNNERS, CPU_RUNNERS, RunnerError, open_bundle_runner, why_not
from adapedit_engine.runners.graphs import Buffers, check_call
from adapedit_engine.runners.pytorch import CompiledRunner, why_not_compiled
from adapedit_kernels.errors import AdapEditError
from tests.helpers.edits import LONGER, SOURCE, TARGET, grey_levels, request

EDITS = [
    request(method="plain"),
    request(method="prompt-to-prompt", cross_replace_steps=0.6),
    request(SOURCE, LONGER, method="prompt-to-prompt", local_blend=("small", "dog")),
    request(seed=3),
    request(TARGET, LONGER, lambda_s=0.9, lambda_spatial=0.8, steps=4),
    request(seed=4, local_blend=("dog",)).model_copy(
        update={"mask": MaskInput.of(np.arange(16) // 5 * np.ones((16, 1)) > 1), "negative_prompt": "a cat"}
    ),
]


@pytest.mark.parametrize("number", range(len(EDITS)))
def test_every_method_on_one_bundle(in_torch, in_onnxruntime, number):
    """Controls are data: nothing is exported, built or loaded again for another method."""
    edit = EDITS[number]
    runner = in_onnxruntime.model.runner
    with runner:
        before = runner._session("unet")
    expected, got = in_torch.edit_batch([edit])[0], in_onnxruntime.edit_batch([edit])[0]
    assert runner._session("unet") is before
    assert grey_levels(got.source_image, expected.source_image) <= 1
    assert grey_levels(got.target_image, expected.target_image) <= 1
    for name in ("source_maps", "target_maps"):
        assert np.abs(getattr(got, name) - getattr(expected, name)).max() < 1e-4
    taus = [(a.word_steps, b.word_steps) for a, b in zip(got.words, expected.words, strict=True)]
    assert all(a == b or abs(a - b) < 1e-4 for a, b in taus)


def test_unrelated_edits_share_a_batch(in_torch, in_onnxruntime):
    got = in_onnxruntime.edit_batch(EDITS)
    for edit, result in zip(EDITS, got, strict=True):
        assert grey_levels(result.target_image, in_torch.edit_batch([edit])[0].target_image) <= 1


@pytest.mark.parametrize(
    ("runner", "apart", "maps_apart"), [("openvino", 1, 1e-4), ("openvino-bfloat16", 12, 3e-2)]
)
def test_openvino_edits_as_pytorch_does(bundle, in_torch, runner, apart, maps_apart):
    if (reason := why_not(runner)) is not None:
        pytest.skip(reason)
    pipe = AdapEditPipeline.from_bundle(bundle.folder, runner)
    for edit, result in zip(EDITS[1:4], pipe.edit_batch(EDITS[1:4]), strict=True):
        expected = in_torch.edit_batch([edit])[0]
        assert grey_levels(result.target_image, expected.target_image) <= apart
        assert np.abs(result.target_maps - expected.target_maps).max() < maps_apart
    # Contiguous or not, and what a caller is given to keep is not overwritten.
    latents = torch.randn(4, 8, 8, 1).permute(3, 0, 2, 1)
    opened: Any = pipe.model.runner
    kept = opened.decode(latents)
    opened.decode(latents + 1)
    assert torch.equal(kept, opened.decode(latents.contiguous()))


@pytest.mark.skipif(why_not("openvino") is not None, reason="wants OpenVINO")
def test_openvino_refuses_what_is_no_graph_of_the_manifest(bundle, tmp_path):
    folder = shutil.copytree(bundle.folder, tmp_path / "bundle")
    (folder / "vae_decoder.onnx").write_bytes(b"nothing")
    shutil.copy(folder / "vae_decoder.onnx", folder / "text_encoder.onnx")
    shutil.copy(folder / "text_projection.onnx", folder / "vae_decoder.onnx")
    runner = open_bundle_runner(replace(bundle, folder=folder), "openvino")
    with pytest.raises(RunnerError, match=r"OpenVINO can't load text_encoder.onnx: "):
        runner.encode_ids(torch.zeros(1, 1, 20, dtype=torch.int64))
    with pytest.raises(
        BundleError, match="vae_decoder.onnx has other inputs than the manifest says: latents is"
    ):
        runner.decode(torch.zeros(1, 4, 8, 8))


def test_another_size_is_refused(in_onnxruntime):
    with pytest.raises(
        AdapEditError, match=r"the edit is 16 x 24 pixels, bundle .* for 16 x 16; export .*--height 24"
    ):
        in_onnxruntime(SOURCE, TARGET, height=24, num_inference_steps=3)


def test_a_graph_that_is_not_the_manifests_is_refused_when_it_is_opened(bundle, tmp_path):
    folder = shutil.copytree(bundle.folder, tmp_path / "bundle")
    shutil.copy(folder / "vae_encoder.onnx", folder / "vae_decoder.onnx")
    swapped = replace(bundle, folder=folder, manifest=replace(bundle.manifest, files=describe_files(folder)))
    message = r"vae_decoder.onnx has other inputs than the manifest says: latents is missing, wanted latents"
    with pytest.raises(BundleError, match=message):
        open_bundle_runner(swapped).decode(torch.zeros(1, 4, 8, 8))


def test_outputs_lie_where_they_lay(bundle):
    runner = open_bundle_runner(bundle)
    ids = torch.zeros(1, 20, dtype=torch.int64)
    session = runner._session("text_encoder")
    first = session.run({"input_ids": ids})["hidden_states"]
    kept = first.clone()
    second = session.run({"input_ids": ids + 1})["hidden_states"]
    assert first.data_ptr() == second.data_ptr() and not torch.equal(kept, second)
    # What a caller is given to keep is not overwritten.
    mine = runner.encode_ids(ids[None])["hidden_states"]
    runner.encode_ids(ids[None] + 1)
    assert torch.equal(mine, kept)
    runner.close()


def test_inputs_need_not_be_contiguous(bundle):
    runner = open_bundle_runner(bundle)
    latents = torch.randn(4, 8, 8, 1).permute(3, 0, 2, 1)
    assert torch.equal(runner.decode(latents), runner.decode(latents.contiguous()))
    runner.close()


def test_pictures_go_in_and_come_out(in_torch, bundle):
    runner = open_bundle_runner(bundle)
    pixels = torch.rand(2, 3, 16, 16)
    vae = in_torch.model.vae
    with torch.no_grad():
        expected = vae.encode(pixels * 2 - 1).latent_dist.mean * vae.config.scaling_factor
    assert (runner.encode(pixels) - expected).abs().max() < 1e-5
    runner.close()


def test_a_closed_runner_says_so(bundle):
    with pytest.raises(RunnerError, match="runner 'onnxruntime' is closed: use it inside `with runner:`"):
        open_bundle_runner(bundle).infer({})


def test_torch_gets_its_threads_back(bundle):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        runner = open_bundle_runner(bundle)
        with pytest.raises(KeyError), runner:
            assert torch.get_num_threads() == 1
            with runner:
                assert torch.get_num_threads() == 1
            raise KeyError
        assert torch.get_num_threads() == 2
        runner.close()
    finally:
        torch.set_num_threads(before)


def test_an_unknown_runner_names_the_known(bundle):
    with pytest.raises(RunnerError, match="there is no runner 'tensorflow'; use one of: onnxruntime, onnx"):
        load_bundle(bundle.folder, "tensorflow")


def test_runners_of_checkpoints_and_of_bundles_are_told_apart(bundle, tiny_folder):
    with pytest.raises(RunnerError, match="runner 'pytorch' runs checkpoints, and .* is a bundle"):
        load_any(bundle.folder, runner="pytorch")
    with pytest.raises(
        RunnerError, match="runner 'tensorrt' wants a bundle with plans; make one: adapedit exp"
    ):
        load_any(tiny_folder, runner="tensorrt")
    with pytest.raises(RunnerError, match="there is no runner 'jax'"):
        load_any(tiny_folder, runner="jax")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
@pytest.mark.parametrize("name", [name for name in BUNDLE_RUNNERS if name not in CPU_RUNNERS])
def test_a_runner_that_needs_a_gpu_says_what_is_missing(bundle, name):
    message = f"runner '{name}' was asked for and can't run here: it needs an NVIDIA GPU .*pip install"
    with pytest.raises(RunnerError, match=message):
        load_bundle(bundle.folder, name)


@pytest.mark.parametrize(
    ("runner", "device", "message"),
    [
        ("onnxruntime", "cuda:1", "device is cuda:1, and runner 'onnxruntime' runs on cpu; choose another"),
        ("onnxruntime-cuda", "cpu", "device is cpu, and runner 'onnxruntime-cuda' runs on cuda"),
        ("onnxruntime", "gpu 0", "device is 'gpu 0', wanted one as PyTorch names it, such as cuda:1"),
    ],
)
def test_a_device_that_is_not_the_runner_s(bundle, tiny_folder, runner, device, message):
    for source in (bundle.folder, tiny_folder):
        with pytest.raises(RunnerError, match=message):
            load_any(source, runner=runner, device=device)


def test_a_checkpoint_is_exported_once_for_a_runner_of_bundles(
    tiny_folder, in_torch, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = ["edit", SOURCE, TARGET, "--model", str(tiny_folder), "--runner", "onnxruntime", "--steps", "2"]
    assert run([*command, "--out", str(tmp_path / "out")]) == 0
    (made,) = (tmp_path / "cache" / "adapedit" / "bundles").iterdir()
    assert f"adapedit: exporting {tiny_folder} once, into {made}; it is taken from" in caplog.text
    caplog.clear()
    monkeypatch.setattr("adapedit.exports.export_bundle", None)  # which a second export would call
    pipe = AdapEditPipeline.from_pretrained(tiny_folder, runner="onnxruntime")
    assert "exporting" not in caplog.text
    edit = request(steps=2)
    got, expected = pipe.edit_batch([edit])[0], in_torch.edit_batch([edit])[0]
    assert grey_levels(got.target_image, expected.target_image) <= 1
    with pytest.raises(
        AdapEditError, match="dtype is torch.bfloat16, and a bundle is made in torch.float32, "
    ):
        load_any(tiny_folder, runner="onnxruntime", dtype=torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor", marks=pytest.mark.skipif(why_not_compiled("cpu") is not None, reason="no g++")
        ),
    ],
)
def test_the_compiled_runner_edits_like_the_eager_one(tiny_folder, in_torch, backend):
    """Traced whole, without a break; the first backend runs the graph as it is and takes no compiler."""
    torch.compiler.reset()
    model = load_any(tiny_folder)
    compiled = CompiledRunner(model.runner.controlled.unet, backend=backend)  # type: ignore[attr-defined]
    pipe = AdapEditPipeline(type(model)(**{**vars(model), "runner": compiled}))
    edit = request(steps=2)
    got, expected = pipe.edit_batch([edit])[0], in_torch.edit_batch([edit])[0]
    assert grey_levels(got.target_image, expected.target_image) <= 1


SPEC = GraphSpec(
    file="x.onnx",
    inputs=(
        TensorSpec(name="a", dtype="float32", shape=("rows", 3)),
        TensorSpec(name="b", dtype="int64", shape=(2, "rows")),
    ),
    outputs=(TensorSpec(name="c", dtype="float32", shape=("rows",)),),
    opset=23,
    nodes=1,
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": torch.zeros(4, 2)}, r"input 'a' has shape \(4, 2\), wanted float32 \(rows, 3\) with rows = 4"),
        (
            {"b": torch.zeros(2, 5, dtype=torch.int64)},
            r"input 'b' has shape \(2, 5\), wanted .* with rows = 4",
        ),
        ({"b": torch.zeros(2, 4)}, r"input 'b' is torch.float32, wanted int64: cast it"),
        ({"z": torch.zeros(1)}, r"g has no input 'z'; its inputs: a, b"),
        ({"a": None}, r"g: input 'a' is missing, wanted float32 \(rows, 3\)"),
    ],
)
def test_a_call_is_held_to_the_contract(changes, message):
    call = {"a": torch.zeros(4, 3), "b": torch.zeros(2, 4, dtype=torch.int64), **changes}
    with pytest.raises(RunnerError, match=message):
        check_call("g", SPEC, {name: tensor for name, tensor in call.items() if tensor is not None}, None)


def test_buffers_are_taken_once_for_every_size():
    buffers = Buffers(SPEC, torch.device("cpu"))
    first = buffers.take("c", {"rows": 4})
    assert buffers.take("c", {"rows": 4}) is first and buffers.take("c", {"rows": 6}).shape == (6,)
