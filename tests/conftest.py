import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from adapedit import AdapEditPipeline
from tests.helpers.defaults import MadeInFloat32
from tests.helpers.tiny_model import save_tiny_model


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors here are so small that a second thread only costs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def default_dtype() -> Iterator[None]:
    """ADAPEDIT_DEFAULT_DTYPE=float64: of the process, as others may have set it; no result may depend on it."""
    name = os.environ.get("ADAPEDIT_DEFAULT_DTYPE")
    if name is None:
        yield
        return
    torch.set_default_dtype(getattr(torch, name))
    with MadeInFloat32():
        yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def pipe(tiny_folder: Path) -> AdapEditPipeline:
    return AdapEditPipeline.from_pretrained(tiny_folder)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What a test records as "summary" is shown where everything passes, too."""
    for report in terminalreporter.getreports("passed"):
        for name, text in report.user_properties:
            if name == "summary":
                terminalreporter.section(report.head_line)
                terminalreporter.write(str(text))
