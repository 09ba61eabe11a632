"""Builds ``libadapedit_kernels`` as its users do, and describes its C structures for ``ctypes``."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OK, INVALID_ARGUMENT, UNSUPPORTED_DTYPE, UNSUPPORTED_SHAPE, UNSUPPORTED_STRIDE, NO_DRIVER = range(6)
FLOAT16, BFLOAT16, FLOAT32 = 1, 2, 3


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and show what it said where it fails."""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, env=clean | environment, cwd=ROOT
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def compile_kernels(folder: Path, which: str) -> str:
    """Compile a set of variants for all targets and write the C sources; returns the printed table."""
    aot = (sys.executable, "-m", "adapedit_kernels.aot")
    return run(*aot, "--set", which, "--jobs", "2", "--out", folder).stdout


def build_and_install(work: Path, *options: str) -> Path:
    """Configure, build and install the root project; returns the prefix."""
    build, prefix = work / "build", work / "installed"
    run("cmake", "-S", ROOT, "-B", build, f"-DPython3_EXECUTABLE={sys.executable}", *options)
    run("cmake", "--build", build)
    run("cmake", "--install", build, "--prefix", prefix)
    return prefix


def library_of(prefix: Path) -> Path:
    return next(prefix.glob("lib*/**/libadapedit_kernels.so"))


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class EditedAttention(ctypes.Structure):
    _fields_ = (
        *_fields(ctypes.c_int32, "dtype batch edits heads pixels tokens width"),
        *_fields(ctypes.c_void_p, "query key prepared out"),
        *_fields(ctypes.c_int64 * 2, "query_strides key_strides out_strides"),
        *_fields(ctypes.c_void_p, "edited_row source_row spatial_map"),
        ("scale", ctypes.c_float),
    )


class AttentionMaps(ctypes.Structure):
    _fields_ = (
        *_fields(ctypes.c_int32, "dtype batch maps heads pixels tokens width"),
        *_fields(ctypes.c_void_p, "query key"),
        *_fields(ctypes.c_int64 * 2, "query_strides key_strides"),
        *_fields(ctypes.c_void_p, "map_row map_sum"),
        *_fields(ctypes.c_float, "map_weight scale"),
        ("workspace", ctypes.c_void_p),
    )


class GuidedStep(ctypes.Structure):
    _fields_ = (
        *_fields(ctypes.c_int32, "dtype rows tracks guidance channels height width"),
        ("noise_pred", ctypes.c_void_p),
        ("noise_pred_strides", ctypes.c_int64 * 4),
        *_fields(ctypes.c_void_p, "latents guidance_rows guidance_weights sample_weight output_weight"),
        *_fields(ctypes.c_void_p, "noise noise_weight blend_mask blend_source out"),
    )


class SpatialSimilarity(ctypes.Structure):
    _fields_ = (
        *_fields(ctypes.c_int32, "dtype batch pixels channels"),
        ("features", ctypes.c_void_p),
        ("features_strides", ctypes.c_int64 * 3),
        *_fields(ctypes.c_void_p, "key_embedding lambda_spatial centre out workspace"),
    )


class WordRelation(ctypes.Structure):
    _fields_ = (
        *_fields(ctypes.c_int32, "batch pixels tokens channels"),
        ("maps", ctypes.c_void_p),
        ("maps_strides", ctypes.c_int64 * 2),
        ("features", ctypes.c_void_p),
        ("features_strides", ctypes.c_int64 * 3),
        *_fields(ctypes.c_void_p, "key_tokens word_of_token"),
        *_fields(ctypes.c_void_p, "lambda_tau threshold relative temperature centre released"),
        *_fields(ctypes.c_void_p, "relation word_steps key_embedding default_steps workspace"),
    )
