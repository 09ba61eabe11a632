"""Bundles that are not what their manifest says are refused, in one line that says which file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from adapedit.bundle import load_bundle
from adapedit_engine.bundle import Bundle, BundleError


@pytest.fixture
def copied(bundle, tmp_path) -> Path:
    return Path(shutil.copytree(bundle.folder, tmp_path / "bundle"))


def edit_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_whole_copy_opens(copied):
    assert Bundle.open(copied).manifest.tokens == 20


def test_a_missing_file(copied):
    (copied / "vae_decoder.onnx").unlink()
    with pytest.raises(BundleError, match=r"vae_decoder.onnx is missing; copy the bundle again"):
        Bundle.open(copied)


def test_a_changed_file_of_the_same_length(copied):
    path = copied / "unet.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"unet.onnx was changed: its SHA-256 is not the manifest's"):
        Bundle.open(copied)
    Bundle.open(copied, verify=False)


def test_a_truncated_file_is_seen_without_sums(copied):
    path = copied / "unet.onnx"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BundleError, match=r"unet.onnx was cut short \(\d+ bytes, the manifest says \d+\)"):
        Bundle.open(copied, verify=False)


def test_a_changed_tokenizer(copied):
    path = copied / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text().replace("dog", "cat"))
    with pytest.raises(BundleError, match=r"tokenizer/tokenizer.json was changed"):
        load_bundle(copied)


def test_a_newer_format(copied):
    edit_manifest(copied, format=2, something="new")
    with pytest.raises(
        BundleError, match=r"has bundle format 2, this version reads up to 1: upgrade adapedit"
    ):
        Bundle.open(copied)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "one"}, "has format 'one', wanted 1"),
        ({"tokens": None}, "manifest.json: tokens: Input should be a valid integer"),
        ({"graphs": {}}, "has no graph 'text_encoder'"),
        ({"files": {}}, "the manifest does not list unet.onnx"),
        ({"files": {"../../etc/passwd": {"bytes": 1, "sha256": ""}}}, "does not list unet.onnx"),
    ],
)
def test_a_manifest_that_is_wrong(copied, changes, message):
    edit_manifest(copied, **changes)
    with pytest.raises(BundleError, match=message):
        Bundle.open(copied)


def test_a_manifest_that_points_outside(copied):
    files = json.loads((copied / "manifest.json").read_text())["files"]
    edit_manifest(copied, files={**files, "../outside": {"bytes": 1, "sha256": ""}})
    with pytest.raises(BundleError, match=r"names '../outside', outside the bundle"):
        Bundle.open(copied)


def test_a_manifest_that_is_no_json(copied):
    (copied / "manifest.json").write_bytes(b'{"format": 1, "model"')
    with pytest.raises(BundleError, match="can't be read"):
        Bundle.open(copied)


def test_no_folder(tmp_path):
    with pytest.raises(BundleError, match="does not exist; make one with: adapedit export"):
        load_bundle(tmp_path / "nothing")


def test_there_is_no_pickle_in_a_bundle(bundle):
    kinds = {path.suffix for path in bundle.folder.rglob("*") if path.is_file()}
    assert kinds <= {".onnx", ".json", ".safetensors", ".txt", ".jinja"}
