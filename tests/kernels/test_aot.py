"""The kernels compiled ahead of time, the C library around them, and another project that uses it: without a GPU."""

from __future__ import annotations

import ctypes
import json
import re
import shutil

import pytest

from tests.kernels import c_library as c

pytest.importorskip("triton")
from adapedit_kernels.aot.variants import KERNELS, TARGETS, all_variants, few_variants

SHARED_LIMIT = 99 * 1024  # of a program on sm_86, sm_89 and sm_120, the least of the targets
HEADER = (c.ROOT / "kernels/aot/include/adapedit_kernels.h").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def library(prefix) -> ctypes.CDLL:
    library = ctypes.CDLL(str(c.library_of(prefix)))
    for name in ("version", "error_message", "last_error"):
        getattr(library, f"adapedit_kernels_{name}").restype = ctypes.c_char_p
    sizes = [f"{name}_workspace" for name in ("attention_maps", "spatial_similarity", "word_relation")]
    for name in ("targets", "binary_count", *sizes):
        getattr(library, f"adapedit_kernels_{name}").restype = ctypes.c_size_t
    return library


@pytest.fixture
def handle(library):
    handle = ctypes.c_void_p()
    assert library.adapedit_kernels_create(ctypes.byref(handle)) == c.OK
    yield handle
    library.adapedit_kernels_destroy(handle)


def test_every_kernel_compiles_for_every_target_without_spills(generated, record_property):
    record_property("summary", (generated / "table.md").read_text())
    binaries = json.loads((generated / "manifest.json").read_text())["binaries"]
    names = [(b["name"], b["pixels_from"], b["target"]) for b in binaries]
    assert names == [(v.name, v.pixels_from, target) for v in few_variants() for target in TARGETS]
    assert {b["kernel"] for b in binaries} == set(KERNELS)
    assert [b for b in binaries if b["spilled"]] == []
    assert all(0 < b["registers"] <= 255 and b["shared"] <= SHARED_LIMIT for b in binaries)
    assert all((b["ptx_bytes"] > 0) == (b["target"] in (80, 89)) for b in binaries)


def test_each_change_is_held_to_every_kernel_in_single_and_half_precision():
    def precisions(variants):
        pairs = {(v.kernel, dtype) for v in variants for dtype in v.dtypes.values() if dtype != "bfloat16"}
        return pairs | {(variant.kernel, None) for variant in variants}

    assert precisions(few_variants()) == precisions(all_variants())


def test_names_of_variants_differ():
    keys = [(variant.name, variant.pixels_from) for variant in all_variants()]
    assert len(set(keys)) == len(keys)


def test_no_name_of_the_building_machine_is_embedded(generated):
    blob = (generated / "adapedit_kernels.bin").read_bytes()
    assert str(c.ROOT).encode() not in blob
    assert b"triton.py" not in blob


def test_the_library_carries_what_was_listed(library, generated):
    class Info(ctypes.Structure):
        _fields_ = (
            ("name", ctypes.c_char_p),
            *((n, ctypes.c_int) for n in "target pixels_from num_warps registers spilled shared".split()),
            *((n, ctypes.c_size_t) for n in ("cubin_bytes", "ptx_bytes")),
        )

    listed = json.loads((generated / "manifest.json").read_text())["binaries"]
    assert library.adapedit_kernels_binary_count() == len(listed)
    info = Info()
    for index, wanted in enumerate(listed):
        assert library.adapedit_kernels_describe_binary(ctypes.c_size_t(index), ctypes.byref(info)) == c.OK
        assert info.name.decode() == wanted["name"]
        got = {field[0]: getattr(info, field[0]) for field in Info._fields_[1:]}
        assert got == {name: wanted[name] for name in got}
    beyond = ctypes.c_size_t(len(listed))
    assert library.adapedit_kernels_describe_binary(beyond, ctypes.byref(info)) == c.INVALID_ARGUMENT
    targets = ctypes.POINTER(ctypes.c_int)()
    count = library.adapedit_kernels_targets(ctypes.byref(targets))
    assert tuple(targets[:count]) == TARGETS
    assert library.adapedit_kernels_version() == b"0.1.0"


@pytest.mark.skipif(not shutil.which("nm"), reason="needs nm")
def test_the_symbols_are_those_of_the_header(prefix):
    table = c.run("nm", "-D", c.library_of(prefix)).stdout
    defined = set(re.findall(r" [TDBR] (\w+)", table))
    assert defined == set(re.findall(r"\b(adapedit_kernels_\w+)\(", HEADER))
    assert not re.search(r" U cu[A-Z]", table), "the driver must be found at run time"


def test_every_status_has_a_message(library):
    count = len(
        re.findall(r"^\s+ADAPEDIT_KERNELS_[A-Z_]+ = \d+,?(?=.*\n)", HEADER.partition("_dtype {")[0], re.M)
    )
    messages = [library.adapedit_kernels_error_message(status) for status in range(count)]
    assert count == 11
    assert len(set(messages)) == count
    assert library.adapedit_kernels_error_message(99) == b"unknown status"


ADDRESS = 4096  # never read: the checks come first, and where there is no driver they are all there is


SHAPE = {"dtype": c.FLOAT16, "batch": 2, "heads": 8, "pixels": 4096, "tokens": 77, "width": 40, "scale": 0.1}
STRIDES = dict.fromkeys(("query_strides", "key_strides"), (8 * 64, 320))


def attention(**changes) -> c.EditedAttention:
    tensors = dict.fromkeys("query key prepared out edited_row source_row spatial_map".split(), ADDRESS)
    return c.EditedAttention(**SHAPE | tensors | STRIDES | {"edits": 1, "out_strides": (512, 320)} | changes)


def maps(**changes) -> c.AttentionMaps:
    tensors = dict.fromkeys("query key map_row map_sum workspace".split(), ADDRESS)
    return c.AttentionMaps(**SHAPE | tensors | STRIDES | {"maps": 2, "map_weight": 1.0} | changes)


def step(**changes) -> c.GuidedStep:
    sizes = {
        "dtype": c.FLOAT16,
        "rows": 4,
        "tracks": 2,
        "guidance": 2,
        "channels": 4,
        "height": 64,
        "width": 64,
    }
    names = "noise_pred latents guidance_rows guidance_weights sample_weight output_weight"
    tensors = dict.fromkeys(names.split(), ADDRESS) | {"out": 2 * ADDRESS}
    return c.GuidedStep(**sizes | tensors | {"noise_pred_strides": (16384, 4096, 64, 1)} | changes)


def similarity(**changes) -> c.SpatialSimilarity:
    sizes = {"dtype": c.FLOAT16, "batch": 2, "pixels": 1024, "channels": 320}
    tensors = dict.fromkeys("features key_embedding lambda_spatial centre out workspace".split(), ADDRESS)
    return c.SpatialSimilarity(**sizes | tensors | {"features_strides": (327680, 320, 1)} | changes)


def relation(**changes) -> c.WordRelation:
    sizes = {"batch": 2, "pixels": 1024, "tokens": 77, "channels": 320}
    names = (
        "maps features key_tokens word_of_token lambda_tau threshold relative temperature centre released "
        "relation word_steps key_embedding default_steps workspace"
    )
    strides = {"maps_strides": (78848, 77), "features_strides": (327680, 320, 1)}
    return c.WordRelation(**sizes | dict.fromkeys(names.split(), ADDRESS) | strides | changes)


OPERATIONS = {
    "edited_attention": attention,
    "attention_maps": maps,
    "guided_step": step,
    "spatial_similarity": similarity,
    "word_relation": relation,
}
WRONG = {
    "edited_attention": [
        ({"dtype": 0}, c.UNSUPPORTED_DTYPE, "dtype is 0, wanted 1 .float16., 2 .bfloat16. or 3 .float32."),
        ({"width": 48}, c.UNSUPPORTED_SHAPE, "heads are 48 wide, wanted 40, 64, 80 or 160"),
        ({"tokens": 0}, c.UNSUPPORTED_SHAPE, "0 tokens, wanted 1 to 1048576"),
        ({"batch": 0}, c.INVALID_ARGUMENT, "batch is 0, wanted 1 to 65535"),
        ({"edits": 0}, c.INVALID_ARGUMENT, "edits is 0, wanted 1 to 65535"),
        ({"edits": 65535}, c.UNSUPPORTED_SHAPE, "prepared has more than 2.31 values; split the call"),
        ({"query": None}, c.INVALID_ARGUMENT, "query is null"),
        ({"out": None}, c.INVALID_ARGUMENT, "out is null"),
        ({"source_row": None}, c.INVALID_ARGUMENT, "source_row is null"),
        ({"spatial_map": None}, c.INVALID_ARGUMENT, "spatial_map is null"),
        (
            {"prepared": 4104},
            c.UNSUPPORTED_STRIDE,
            "prepared starts at 0x1008, wanted a multiple of 16 bytes",
        ),
        ({"key_strides": (8, 41)}, c.UNSUPPORTED_STRIDE, "stride 1 of key is 41, wanted a multiple of 8"),
        ({"query_strides": (8, -8)}, c.UNSUPPORTED_STRIDE, "stride 1 of query is -8"),
        ({"query_strides": (8, 1 << 20)}, c.UNSUPPORTED_STRIDE, "less than 2.31 in all"),
        ({"scale": 0.0}, c.INVALID_ARGUMENT, "scale is 0"),
        ({"scale": float("nan")}, c.INVALID_ARGUMENT, "scale is -?nan"),
    ],
    "attention_maps": [
        ({"tokens": 129}, c.UNSUPPORTED_SHAPE, "129 tokens, wanted 1 to 128"),
        ({"maps": 0}, c.INVALID_ARGUMENT, "maps is 0, wanted 1 to 65535"),
        ({"map_row": 4100}, c.UNSUPPORTED_STRIDE, "map_row starts at 0x1004"),
        ({"map_sum": None}, c.INVALID_ARGUMENT, "map_sum is null"),
        ({"workspace": None}, c.INVALID_ARGUMENT, "workspace is null"),
    ],
    "guided_step": [
        ({"dtype": 4}, c.UNSUPPORTED_DTYPE, "dtype is 4"),
        ({"guidance": 0}, c.INVALID_ARGUMENT, "guidance is 0"),
        (
            {"channels": 1 << 15, "height": 1 << 15},
            c.INVALID_ARGUMENT,
            "channels height width is 68719476736",
        ),
        ({"latents": None}, c.INVALID_ARGUMENT, "latents is null"),
        ({"guidance_rows": 4100}, c.UNSUPPORTED_STRIDE, "guidance_rows starts at 0x1004"),
        ({"noise": ADDRESS}, c.INVALID_ARGUMENT, "noise_weight is null"),
        ({"blend_source": ADDRESS}, c.INVALID_ARGUMENT, "blend_mask is null"),
        (
            {"blend_mask": ADDRESS, "blend_source": ADDRESS, "out": ADDRESS},
            c.INVALID_ARGUMENT,
            "out is latents and a blend reads other tracks' latents",
        ),
    ],
    "spatial_similarity": [
        ({"dtype": -1}, c.UNSUPPORTED_DTYPE, "dtype is -1"),
        ({"features": None}, c.INVALID_ARGUMENT, "features is null"),
        ({"workspace": None}, c.INVALID_ARGUMENT, "workspace is null"),
        ({"centre": None}, c.INVALID_ARGUMENT, "centre is null"),
        ({"pixels": 0}, c.INVALID_ARGUMENT, "pixels is 0"),
    ],
    "word_relation": [
        ({"tokens": 200}, c.UNSUPPORTED_SHAPE, "200 tokens"),
        ({"default_steps": None}, c.INVALID_ARGUMENT, "default_steps is null"),
        ({"threshold": None}, c.INVALID_ARGUMENT, "threshold is null"),
        ({"temperature": 4098}, c.UNSUPPORTED_STRIDE, "temperature starts at 0x1002"),
        ({"released": None}, c.INVALID_ARGUMENT, "released is null"),
    ],
}


@pytest.mark.parametrize(
    ("operation", "changes", "status", "message"),
    [(operation, *wrong) for operation, wrongs in WRONG.items() for wrong in wrongs],
)
def test_wrong_arguments_are_named(library, handle, operation, changes, status, message):
    call = getattr(library, f"adapedit_kernels_{operation}")
    assert call(handle, ctypes.byref(OPERATIONS[operation](**changes)), None) == status
    said = library.adapedit_kernels_last_error(handle).decode()
    assert re.match(f"{operation}: ", said)
    assert re.search(message, said), said


@pytest.mark.parametrize("operation", OPERATIONS)
def test_null_is_refused_everywhere(library, handle, operation):
    call = getattr(library, f"adapedit_kernels_{operation}")
    assert call(None, None, None) == c.INVALID_ARGUMENT
    assert call(handle, None, None) == c.INVALID_ARGUMENT
    assert library.adapedit_kernels_last_error(handle).decode() == f"{operation}: args is null"


def test_null_handles_are_refused(library):
    assert library.adapedit_kernels_create(None) == c.INVALID_ARGUMENT
    assert library.adapedit_kernels_load(None) == c.INVALID_ARGUMENT
    assert library.adapedit_kernels_last_error(None) == b"no handle was given"
    library.adapedit_kernels_destroy(None)


def test_workspaces_are_those_of_the_intermediate_results(library):
    size = library.adapedit_kernels_spatial_similarity_workspace
    assert size(ctypes.byref(similarity())) == 2 * 320 * 4
    assert size(ctypes.byref(similarity(batch=-1))) == 0
    assert library.adapedit_kernels_attention_maps_workspace(ctypes.byref(maps())) == 2 * 8 * 4096 * 77 * 4
    assert library.adapedit_kernels_word_relation_workspace(ctypes.byref(relation())) == 2 * 77 * 321 * 4


@pytest.mark.skipif(c.has_driver(), reason="there is a CUDA driver here")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_right_arguments_without_a_driver_say_so(library, handle, operation):
    call = getattr(library, f"adapedit_kernels_{operation}")
    assert call(handle, ctypes.byref(OPERATIONS[operation]()), None) == c.NO_DRIVER
    said = library.adapedit_kernels_last_error(handle).decode()
    assert re.match(r"load: no CUDA driver \(libcuda\.so\.1: .*\); install NVIDIA's driver", said)


@pytest.mark.skipif(c.has_driver(), reason="there is a CUDA driver here")
def test_another_project_finds_builds_and_runs(prefix, tmp_path):
    build = tmp_path / "consumer"
    source = c.ROOT / "tests/kernels/find_package"
    c.run("cmake", "-S", source, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}")
    c.run("cmake", "--build", build)
    c.run(build / "consumer_cxx")
    # The status is the program's; the shell turns it into success so that it can be read with the output.
    done = c.run("sh", "-c", '"$0"; echo "status $?"', build / "consumer")
    count = len(few_variants()) * len(TARGETS)
    assert f"version 0.1.0, {count} binaries, targets 80 86 89 90 100 120\n" in done.stdout
    assert "no CUDA driver was found\nload: no CUDA driver (libcuda.so.1" in done.stdout
    assert f"status {c.NO_DRIVER}" in done.stdout


@pytest.mark.slow
def test_the_whole_list_builds(tmp_path):
    prefix = c.build_and_install(tmp_path)
    binaries = json.loads((prefix / "share/adapedit_kernels/manifest.json").read_text())["binaries"]
    assert len(binaries) == len(all_variants()) * len(TARGETS)
    assert not any(b["spilled"] for b in binaries)
