"""Bundles that are not what their manifest says are refused, in one line that says which file and what of it."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adapedit_engine.bundle import Bundle, check_graph, new_folder, write_tensors
from adapedit_engine.manifest import GRAPHS, BundleError, GraphSpec, TensorSpec, reading
from tests.engine.manifests import TOKENS, a_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle whose graphs are files without sense."""
    for name in GRAPHS:
        (tmp_path / f"{name}.onnx").write_bytes(name.encode() * 100)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text('{"dog": 1}')
    (tmp_path / "manifest.json").write_text(json.dumps(a_manifest(tmp_path)))
    return tmp_path


def change(folder: Path, path: tuple[Any, ...], value: Any) -> None:
    """Set one place of the manifest; None removes it."""
    manifest = json.loads(json.dumps(a_manifest(folder)))  # which parts lists that are shared
    place = manifest
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_whole_bundle_opens_and_is_written_as_it_was(folder):
    found = Bundle.open(folder)
    assert found.manifest.tokens == TOKENS and found.manifest.map_size == (4, 4)
    (folder / "manifest.json").write_text(found.manifest.to_json())
    assert Bundle.open(folder) == found


def test_a_missing_file(folder):
    (folder / "vae_decoder.onnx").unlink()
    with pytest.raises(BundleError, match=r"vae_decoder.onnx is missing; copy the bundle again"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", ["unet.onnx", "tokenizer/tokenizer.json"])
def test_a_changed_file_of_the_same_length(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{name} was changed: its SHA-256 is not the manifest's"):
        Bundle.open(folder)
    Bundle.open(folder, verify=False)


def test_a_truncated_file_is_seen_without_sums(folder):
    path = folder / "unet.onnx"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BundleError, match=r"unet.onnx was cut short \(\d+ bytes, the manifest says \d+\)"):
        Bundle.open(folder, verify=False)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), 3, "has bundle format 3, this version reads 4: export the model again"),
        (("format",), 5, "has bundle format 5, this version reads 4: upgrade adapedit"),
        (("format",), True, "has bundle format True"),
        (("format",), None, "has bundle format None"),
        (("tokens",), "6", "manifest.json: tokens: Input should be a valid integer"),
        (("surprise",), 1, "manifest.json: surprise: Unexpected keyword argument"),
        (("rows",), 2**63, "rows: Input should be less than or equal to 1024"),
        (("height",), 0, "height: Input should be greater than or equal to 1"),
        (("scheduler",), "__import__", "scheduler: String should match pattern"),
        (("vae", "scaling_factor"), float("nan"), "vae.scaling_factor: Input should be"),
        (("specs", "map_level"), 2**63, "specs.map_level: Input should be less than or equal to 8"),
        (("specs", "map_level"), 0, r"specs: map_level is 0, cross-attention is at the levels \(1,\)"),
        (("specs", "out_channels"), 10**29, "specs.out_channels: Input should be"),
        (("specs", "self_layers"), [], "specs.self_layers: Tuple should have at least 1"),
        (("specs", "cross_layers", 0, "level"), -1, "specs.cross_layers.0.level: Input should be"),
        (("specs", "cross_layers", 0, "place"), "left", "specs.cross_layers.0.place: Input should be"),
        (("graphs",), {}, "has no graphs, wanted text_encoder, text_projection, unet"),
        (("graphs", "unet"), None, "has text_encoder, text_projection, vae_decoder, vae_encoder, wanted"),
        (
            ("graphs", "unet", "inputs", 0, "dtype"),
            "",
            "graphs.unet.inputs.0.dtype: Input should be 'float32'",
        ),
        (("graphs", "unet", "inputs", 0, "name"), "float16", "graphs.unet.inputs: sample is missing"),
        (("graphs", "unet", "outputs", 1, "shape", 0), 0, "graphs.unet.outputs.1.shape.0"),
        (
            ("graphs", "unet", "outputs", 2, "shape", 2),
            21,
            r"visual_features is float32 \('maps', 16, 21\), wanted",
        ),
        (
            ("graphs", "unet", "inputs", 2, "shape", 2),
            41,
            r"projected_text is .* 41\), wanted float32 .* 40\)",
        ),
        (("graphs", "text_encoder", "inputs", 0, "shape", 0), "x", "graphs.text_encoder.inputs.0.shape.0"),
        (("graphs", "text_encoder", "file"), "unet.onnx", "graphs.text_encoder.file is 'unet.onnx', wanted"),
        (("graphs", "vae_decoder", "inputs", 0), None, "graphs.vae_decoder.inputs: latents is missing"),
        (("files",), {}, "files does not list unet.onnx"),
        (
            ("files", "../outside"),
            {"bytes": 1, "sha256": "0" * 64},
            r"names '../outside', outside the bundle",
        ),
        (
            ("files", "/etc/passwd"),
            {"bytes": 1, "sha256": "0" * 64},
            r"names '/etc/passwd', outside the bundle",
        ),
        (("files", "unet.onnx", "sha256"), "", "files.unet.onnx.sha256: String should match pattern"),
    ],
)
def test_a_field_that_is_wrong_is_named(folder, path, value, message):
    change(folder, path, value)
    with pytest.raises(BundleError, match=message) as raised:
        Bundle.open(folder)
    assert "\n" not in str(raised.value) and str(folder) in str(raised.value)


CASES = [json.loads(line) for line in (Path(__file__).parents[1] / "data" / "files.jsonl").open()]


@pytest.mark.parametrize("case", [case for case in CASES if case["of"] == "bundle"], ids=str)
def test_each_field_that_failed_once_is_refused_when_opened(folder, case):
    change(folder, tuple(case["path"]), case["value"])
    with pytest.raises(BundleError, match="manifest.json: ") as raised:
        Bundle.open(folder)
    *_, field = [name for name in case["path"] if isinstance(name, str) and name not in ("name", "shape")]
    assert "\n" not in str(raised.value) and field in str(raised.value)


@pytest.mark.parametrize(
    "text", [b'{"format": 4, "model"', b"\xff\xfe", b"[" * 100_000, b"[]", b"", b'"\\ud800"']
)
def test_a_manifest_that_is_no_json_of_a_bundle(folder, text):
    (folder / "manifest.json").write_bytes(text)
    with pytest.raises(BundleError, match="can't be read|has bundle format None"):
        Bundle.open(folder)


def test_a_manifest_too_large_to_be_one_is_not_read(folder):
    with (folder / "manifest.json").open("r+b") as file:
        file.truncate(1 << 25)
    with pytest.raises(BundleError, match="manifest.json is larger than 16 MB"):
        Bundle.open(folder)


def test_no_folder(tmp_path):
    with pytest.raises(BundleError, match="does not exist; make one with: adapedit export"):
        Bundle.open(tmp_path / "nothing")


SPEC = GraphSpec(
    file="unet.onnx",
    inputs=(TensorSpec(name="x", dtype="float16", shape=("rows", 4)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("rows", 8)),),
    opset=23,
    nodes=1,
)
LOADED = {"inputs": {"x": ("tensor(float16)", ("rows", 4))}, "outputs": {"y": ("tensor(float)", ("rows", 8))}}
IN_TENSORRT = {"inputs": {"x": ("HALF", (-1, 4))}, "outputs": {"y": ("FLOAT", (-1, -1))}}


@pytest.mark.parametrize("found", [LOADED, IN_TENSORRT])
def test_the_graph_of_the_manifest_is_taken(found):
    check_graph("unet.onnx", SPEC, found)


@pytest.mark.parametrize(
    ("kind", "tensors", "message"),
    [
        (
            "inputs",
            {},
            "has other inputs than the manifest says: x is missing, wanted x; export the model again",
        ),
        ("inputs", {"x": ("HALF", (-1, -1))}, r"x is float16 \(-1, -1\), wanted float16 \('rows', 4\)"),
        ("inputs", {"x": ("FLOAT", (-1, 4))}, "x is float32"),
        ("outputs", {"y": ("FLOAT", (-1,))}, "has other outputs than the manifest says: y is"),
        ("outputs", {"y": ("tensor(bool)", ("rows", 8))}, "y is BOOL"),
        ("outputs", {"y": ("FLOAT", (-1, 8)), "z": ("FLOAT", (1,))}, "z is one too many, wanted y"),
    ],
)
def test_another_graph_is_refused(kind, tensors, message):
    with pytest.raises(BundleError, match=message):
        check_graph("unet.onnx", SPEC, {**LOADED, kind: tensors})


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_files_have_the_mode_that_the_umask_gives(tmp_path, umask):
    shared = torch.arange(6.0)
    with new_folder(tmp_path / "out") as made:
        write_tensors(made / "t.safetensors", {"a": shared, "b": shared[:3], "c": shared.view(2, 3).T})
    read = load_file(tmp_path / "out" / "t.safetensors")
    assert torch.equal(read["c"], shared.view(2, 3).T) and torch.equal(read["b"], shared[:3])
    modes = [
        stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out", tmp_path / "out" / "t.safetensors")
    ]
    assert modes == [0o750, 0o640]


@pytest.mark.parametrize(
    "error", [KeyError("x"), RecursionError(), UnicodeDecodeError("utf-8", b"", 0, 1, "no")]
)
def test_what_a_library_raises_names_the_file(tmp_path, error):
    with (
        pytest.raises(BundleError, match=r"a.json can't be read \(.*\); mend it"),
        reading(tmp_path / "a.json", "mend it"),
    ):
        raise error
    with pytest.raises(BundleError, match="^mine$"), reading(tmp_path / "a.json"):
        raise BundleError("mine")
