"""What the C library hands to a driver, seen by one that is made up: there is a driver, and no GPU."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.kernels import c_library as c

pytestmark = pytest.mark.skipif(c.has_driver(), reason="there is a CUDA driver here")


@pytest.fixture(scope="module")
def example(built, tmp_path_factory) -> tuple[Path, Path]:
    """The C example, and a folder with the made-up libcuda.so.1."""
    folder = tmp_path_factory.mktemp("driver")
    source = c.ROOT / "tests/kernels/fake_driver/cuda.c"
    c.run("cc", "-std=gnu11", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", source)
    return next((built / "build").rglob("adapedit_kernels_attention")), folder


def _run(example: tuple[Path, Path], **environment: str) -> subprocess.CompletedProcess[str]:
    program, folder = example
    return subprocess.run(
        [program], env={"LD_LIBRARY_PATH": str(folder), **environment}, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("capability", "binary"),
    [
        (80, "cubin"),
        (86, "cubin"),
        (89, "cubin"),
        (90, "cubin"),
        (100, "cubin"),
        (120, "cubin"),
        (87, "ptxsm_80"),  # the nearest lower target with PTX that other devices take
        (103, "ptxsm_89"),
        (121, "ptxsm_89"),
    ],
)
def test_the_binary_fits_the_device(example, capability, binary):
    done = _run(example, FAKE_CAPABILITY=str(capability))
    # One block of 16 pixels, one head, one edit; 4 warps.
    assert f"launch edited_attention_kernel {binary} grid 1 1 1 threads 128 shared " in done.stdout, done
    # The made-up driver computes nothing, which the example's own check must notice.
    assert "largest difference from plain C: " in done.stdout
    assert done.returncode == 1


def test_a_device_below_every_target_is_refused(example):
    done = _run(example, FAKE_CAPABILITY="75")
    assert done.returncode == 1
    assert "compute capability 7.5 and this build has nothing for it or below" in done.stderr


@pytest.mark.parametrize("function", ["cuModuleLoadData", "cuModuleGetFunction"])
def test_the_drivers_words_are_passed_on(example, function):
    done = _run(example, FAKE_FAILURE=function)
    assert done.returncode == 1
    assert "the CUDA driver refused a call: edited_attention.float32.w40: " in done.stderr
    assert "the driver says 218, made up" in done.stderr


def test_a_missing_context_is_named(example):
    done = _run(example, FAKE_NO_CONTEXT="1")
    assert done.returncode == 1
    assert "load: no CUDA context is current; call cuCtxSetCurrent" in done.stderr


def test_a_driver_without_a_device_is_said(example):
    done = _run(example, FAKE_FAILURE="cuInit")
    assert "load: cuInit: the driver says 218, made up" in done.stdout
