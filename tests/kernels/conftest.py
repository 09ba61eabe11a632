"""The C library is built once for all the tests that call it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.kernels import c_library as c


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A variant of each kind compiled for all six targets, and table.md of what they take."""
    pytest.importorskip("triton")
    folder = tmp_path_factory.mktemp("aot") / "generated"
    table = c.compile_kernels(folder, "few")
    (folder / "table.md").write_text(table)
    return folder


@pytest.fixture(scope="session")
def built(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root project built with its examples (``build``) and installed (``installed``)."""
    if not all(map(shutil.which, ("cmake", "cc"))):
        pytest.skip("building the C library needs cmake and a C compiler")
    work = tmp_path_factory.mktemp("library")
    c.build_and_install(work, f"-DADAPEDIT_KERNELS_SOURCES={generated}", "-DADAPEDIT_KERNELS_EXAMPLES=ON")
    return work


@pytest.fixture(scope="session")
def prefix(built: Path) -> Path:
    return built / "installed"
