"""Each number of a manifest has its bounds, and graphs have the tensors that all else in it asks for."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from adapedit_engine.manifest import (
    MAX_BYTES,
    BundleError,
    FileSpec,
    Manifest,
    PlanKey,
    PlanRecord,
    difference,
    read_bytes,
)
from tests.engine.manifests import EDITED, MAPS, ROWS, TENSORS, a_manifest

SIDES, BYTES = 1 << 20, 1 << 50
LAYER = ("specs", "cross_layers", 0)


@pytest.fixture
def manifest(tmp_path: Path) -> dict[str, Any]:
    for name in TENSORS:
        (tmp_path / f"{name}.onnx").write_bytes(name.encode())
    return json.loads(json.dumps(a_manifest(tmp_path)))


def made_of(manifest: Any) -> Manifest:
    return TypeAdapter(Manifest).validate_json(json.dumps(manifest))


def refusal(manifest: Any) -> str:
    """What is said of a manifest; nothing of one that is taken."""
    try:
        made_of(manifest)
    except ValueError as error:
        return str(error)
    return ""


def with_value(manifest: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = deepcopy(manifest)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("path", "least", "most"),
    [
        (("tokens",), 2, 4096),
        (("vocabulary",), 1, SIDES),
        (("height",), 1, 4096),
        (("width",), 1, 4096),
        (("rows",), 1, 1024),
        (("text_encoders",), 1, 2),
        (("vae", "factor"), 1, 256),
        (("graphs", "unet", "opset"), 1, 100),
        (("graphs", "unet", "nodes"), 0, 1 << 24),
        (("graphs", "unet", "inputs", 0, "shape", 1), 1, SIDES),
        (("files", "unet.onnx", "bytes"), 0, BYTES),
        (("specs", "in_channels"), 1, SIDES),
        (("specs", "out_channels"), 1, SIDES),
        (("specs", "text_channels"), 1, SIDES),
        (("specs", "feature_channels"), 1, SIDES),
        ((*LAYER, "channels"), 1, SIDES),
        ((*LAYER, "level"), 0, 8),
        (("specs", "map_level"), 0, 8),
        (("specs", "halving_pad"), 0, 1),
    ],
    ids=str,
)
def test_a_number_is_within_its_bounds(manifest, path, least: int, most: int):
    """What else is wrong with a manifest once one number of it is another is said behind the bounds."""
    of_bounds = re.compile(r"Input should be (greater|less) than or equal")
    for value in (least, most):
        assert not of_bounds.search(refusal(with_value(manifest, path, value))), value
    for value in (least - 1, most + 1):
        assert of_bounds.search(refusal(with_value(manifest, path, value))), value


@pytest.mark.parametrize(
    ("path", "value", "taken"),
    [
        (("vae", "scaling_factor"), 0.0, False),
        (("vae", "scaling_factor"), 1e-9, True),
        (("vae", "scaling_factor"), 1e6, True),
        (("vae", "scaling_factor"), 1e6 + 1, False),
        (("parity", "edit", "maps", "mean"), 0.0, True),
        (("parity", "edit", "maps", "mean"), -1e-9, False),
        (("parity",), {"edit": {"maps": {"largest": 1.0, "mean": 0.5, "ratio": float("inf")}}}, False),
        (("model",), "m" * 1000, True),
        (("model",), "m" * 1001, False),
        (("model",), "", False),
        (("scheduler",), "D" * 100, True),
        (("scheduler",), "D" * 101, False),
        (("versions",), {f"v{i}": "1" for i in range(100)}, True),
        (("versions",), {f"v{i}": "1" for i in range(101)}, False),
        (("files", "tokenizer/a.json"), {"bytes": 1, "sha256": "0" * 64}, True),
        (("files", "a\\b"), {"bytes": 1, "sha256": "0" * 64}, False),
        (("files", "a\0b"), {"bytes": 1, "sha256": "0" * 64}, False),
        (("files", "a"), {"bytes": 1, "sha256": "0" * 63}, False),
        (("precision",), "bfloat16", False),
        (("precision",), "mixed", True),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_value_is_taken_or_not(manifest, path, value, taken: bool):
    assert (refusal(with_value(manifest, path, value)) == "") == taken


def test_as_many_files_and_tensors_as_a_bundle_may_have(manifest):
    one = {"bytes": 1, "sha256": "0" * 64}
    files = manifest["files"] | {f"f{i}": one for i in range(10_000 - len(manifest["files"]))}
    assert refusal(manifest | {"files": files}) == ""
    assert "at most 10000 items" in refusal(manifest | {"files": files | {"more": one}})
    for kind in ("inputs", "outputs"):
        tensor = manifest["graphs"]["unet"][kind][0]
        path = ("graphs", "unet", kind)
        assert "at most 100 items" not in refusal(with_value(manifest, path, [tensor] * 100))
        assert "at most 100 items" in refusal(with_value(manifest, path, [tensor] * 101))
    shape = ("graphs", "unet", "inputs", 0, "shape")
    assert "at most 8 items" not in refusal(with_value(manifest, shape, [1] * 8))
    assert "at most 8 items" in refusal(with_value(manifest, shape, [1] * 9))
    assert "at least 1 item" in refusal(with_value(manifest, shape, []))


@pytest.mark.parametrize("kind", ["self_layers", "cross_layers"])
def test_as_many_layers_as_a_model_may_have(manifest, kind: str):
    layer = manifest["specs"][kind]
    for count, refused in ((0, True), (1, False), (1000, False), (1001, True)):
        said = refusal(with_value(manifest, ("specs", kind), layer * count))
        assert ("Tuple should have at" in said) == refused


def changed_tensors(manifest: Any, change: Any) -> Any:
    """The manifest with the shape and dtype of each tensor of its graphs as `change` has it."""
    changed = deepcopy(manifest)
    for graph in changed["graphs"].values():
        for tensor in graph["inputs"] + graph["outputs"]:
            tensor["dtype"], tensor["shape"] = change(tensor["name"], tensor["dtype"], tensor["shape"])
    return changed


def test_a_bundle_of_fixed_rows_has_them_in_the_unet_alone(manifest):
    """Of each row there may be an edit, and maps."""
    fixed = deepcopy(manifest) | {"rows": 4}
    graph = fixed["graphs"]["unet"]
    for tensor in graph["inputs"] + graph["outputs"]:
        tensor["shape"] = [4 if side in (ROWS, EDITED, MAPS) else side for side in tensor["shape"]]
    assert refusal(fixed) == ""
    assert "wanted float32 (4, 4, 8, 8)" in refusal(manifest | {"rows": 4})


HALF = "sample noise_pred projected_text hidden_states encoder_hidden_states latents pixels visual_features".split()


@pytest.mark.parametrize("precision", ["float16", "mixed", "int8", "fp8"])
def test_numbers_are_half_as_wide_in_float16_alone(manifest, precision: str):
    half = changed_tensors(manifest, lambda name, dtype, shape: ("float16" if name in HALF else dtype, shape))
    assert (refusal(half | {"precision": precision}) == "") == (precision == "float16")
    assert (refusal(manifest | {"precision": precision}) == "") == (precision != "float16")


def test_a_bundle_of_two_text_encoders(manifest):
    xl = deepcopy(manifest) | {"text_encoders": 2}
    xl["specs"]["conditioning"] = {"text_embeds": [20], "time_ids": [6]}
    text, unet = xl["graphs"]["text_encoder"], xl["graphs"]["unet"]
    text["inputs"].append({"name": "input_ids_2", "dtype": "int64", "shape": [ROWS, 6]})
    text["outputs"].append({"name": "text_embeds", "dtype": "float32", "shape": [ROWS, 20]})
    unet["inputs"] += [
        {"name": "text_embeds", "dtype": "float32", "shape": [ROWS, 20]},
        {"name": "time_ids", "dtype": "float32", "shape": [ROWS, 6]},
    ]
    assert refusal(xl) == ""
    assert made_of(xl).tokenizers == ("tokenizer", "tokenizer_2")
    assert made_of(manifest).tokenizers == ("tokenizer",)
    for wanted, conditioning in (
        ("wanted text_embeds and time_ids, or none", {"text_embeds": [20]}),
        ("greater than or equal to 1", {"text_embeds": [0], "time_ids": [6]}),
        (f"less than or equal to {SIDES}", {"text_embeds": [20], "time_ids": [SIDES + 1]}),
    ):
        assert wanted in refusal(with_value(xl, ("specs", "conditioning"), conditioning))


@pytest.mark.parametrize("name", ["a.onnx", "unet.onnx.data", "vae_decoder.onnx", "UNET.onnx"])
def test_a_graph_is_in_the_file_of_its_name(manifest, name: str):
    assert f"is {name!r}, wanted 'unet.onnx'" in refusal(
        with_value(manifest, ("graphs", "unet", "file"), name)
    )


def test_maps_are_as_large_as_the_level_says(manifest):
    found = made_of(manifest)
    assert found.map_size == (4, 4)
    assert made_of(json.loads(found.to_json())) == found


KEY: dict[str, Any] = {
    "graph": "unet",
    "onnx_sha256": "0" * 64,
    "family": "tensorrt",
    "version": "10.13",
    "compute_capability": "8.9",
    "workload": "edits",
    "profiles": ({"x": ((1, 4), (2, 4), (4, 8))}, {"x": ((1, 4), (8, 4), (16, 8)), "y": ((1,), (1,), (2,))}),
}


@pytest.mark.parametrize(
    ("shapes", "profile"),
    [
        ({"x": (1, 4), "y": (2,)}, 0),
        ({"x": (4, 8), "y": (9,)}, 0),
        ({"x": (5, 8), "y": (2,)}, 1),
        ({"x": (16, 4), "y": (1,)}, 1),
        ({"x": (16, 4), "y": (3,)}, None),
        ({"x": (17, 4), "y": (1,)}, None),
        ({"x": (0, 4), "y": (1,)}, None),
        ({"x": (4, 9), "y": (1,)}, None),
        ({"x": (4,), "y": (1,)}, None),
        ({"x": (4, 4, 4), "y": (1,)}, None),
    ],
    ids=str,
)
def test_the_first_profile_that_takes_the_shapes(shapes, profile):
    assert PlanKey(**KEY).profile_of(shapes) == profile


def test_plans_of_other_kinds_have_other_names():
    changes: tuple[dict[str, Any], ...] = (
        *(
            {},
            {"graph": "vae_decoder"},
            {"onnx_sha256": "1" * 64},
            {"family": "tensorrt-rtx"},
            {"version": "11.0"},
        ),
        *({"compute_capability": "12.0"}, {"workload": "demo"}, {"profiles": KEY["profiles"][:1]}),
        *({"refit": True}, {"lean": True}),
    )
    names = [PlanKey(**KEY | change).name for change in changes]
    assert len(set(names)) == len(changes) and all(re.fullmatch(r"\w+-[0-9a-f]{16}", name) for name in names)
    assert PlanKey(**KEY).name == names[0]
    for wrong in ("8", "1234.0", "8.10", "a.b"):
        with pytest.raises(ValueError, match="should match pattern"):
            PlanKey(**KEY | {"compute_capability": wrong})
    for count in (0, 17):
        with pytest.raises(ValueError, match="item"):
            PlanKey(**KEY | {"profiles": KEY["profiles"][:1] * count})


def test_a_record_is_read_as_it_was_written(tmp_path):
    record = PlanRecord(
        key=PlanKey(**KEY),
        file=FileSpec(bytes=5, sha256="0" * 64),
        layers=0,
        activation_bytes=BYTES,
        build_seconds=0.0,
    )
    path = tmp_path / f"{record.key.name}.json"
    path.write_text(record.to_json())
    assert PlanRecord.read(path) == record and record.file_name == f"{record.key.name}.plan"
    path.write_text(record.to_json().replace('"layers": 0', '"layers": -1'))
    with pytest.raises(BundleError, match="layers: .* got -1; remove it and build again"):
        PlanRecord.read(path)


def test_a_file_may_be_as_large_as_a_manifest_can_get(tmp_path):
    path = tmp_path / "manifest.json"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES)
    assert len(read_bytes(path)) == MAX_BYTES == 16 * 2**20
    with path.open("r+b") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(BundleError, match="larger than 16 MB"):
        read_bytes(path)


@pytest.mark.parametrize(
    ("sides", "there", "open_sides", "same"),
    [
        (("rows", 4), ("rows", 4), False, True),
        (("rows", 4), (-1, 4), False, True),
        (("rows", 4), ("edits", 4), False, False),
        (("rows", 4), (2, 4), False, False),
        (("rows", 4), ("rows", 5), False, False),
        (("rows", 4), ("rows", 3), False, False),
        (("rows", 4), ("rows", -1), False, False),
        (("rows", 4), ("rows", -1), True, True),
        (("rows", 4), ("rows", 5), True, False),
        (("rows", 4), ("rows",), True, False),
        (("rows",), ("rows", 4), True, False),
    ],
)
def test_sides_are_those_wanted_or_open(sides, there, open_sides: bool, same: bool):
    said = difference({"x": ("float32", sides)}, {"x": ("float32", there)}, open_sides=open_sides)
    assert (said is None) == same
    assert said is None or said == f"x is float32 {there}, wanted float32 {sides}"
