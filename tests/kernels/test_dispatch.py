"""Which implementation runs, and what importing the package costs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import adapedit_kernels
from adapedit_kernels import AdapEditError, ImplementationError, dispatch, edited_attention
from tests.kernels.inputs import AttentionShape, attention_inputs


def test_a_named_implementation_that_can_not_run_is_an_error() -> None:
    given = attention_inputs(AttentionShape(2, 2, 5, 7, 4), torch.float32).plain()
    with pytest.raises(ImplementationError, match="'triton' needs CUDA tensors, got cpu; move them, name"):
        edited_attention(**given, implementation="triton")
    with pytest.raises(
        AdapEditError, match="implementation is 'cuda', wanted one of 'auto', 'reference', 'triton'"
    ):
        edited_attention(**given, implementation="cuda")


def test_kernels_are_launched_on_the_device_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two devices the current one need not be theirs: Triton asks for that one."""
    said, tensor, lies_on = list[str](), torch.zeros(1), list[torch.Tensor]()

    @contextmanager
    def device_of(other: torch.Tensor) -> Iterator[None]:
        lies_on.append(other)
        said.append("enter")
        yield
        said.append("leave")

    monkeypatch.setattr(torch.cuda, "device_of", device_of)

    def launcher(*given: object) -> tuple[object, ...]:
        said.append("launch")
        return given

    for operation in ("edited_attention", "group_norm", "guided_step", "spatial_similarity"):
        module = SimpleNamespace(launch=launcher)
        monkeypatch.setitem(sys.modules, f"adapedit_kernels.{operation}.triton", module)
        assert dispatch.launch(operation, tensor, 2, None) == (tensor, 2, None)
        assert said == ["enter", "launch", "leave"] and lies_on.pop() is tensor
        said.clear()


def test_no_operation_launches_past_the_guard() -> None:
    folder = Path(dispatch.__file__).parent
    past = [path.parent.name for path in folder.glob("*/__init__.py") if ".triton import" in path.read_text()]
    assert not past


def _python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


def test_errors_are_caught_without_importing_torch() -> None:
    _python("import sys, adapedit_kernels.errors; assert 'torch' not in sys.modules")


def test_every_name_is_there_without_triton() -> None:
    _python(
        "import sys; sys.modules['triton'] = None; from adapedit_kernels import *; word_relation, RelationKnobs"
    )


def test_an_operation_is_a_function_whichever_way_its_folder_is_imported() -> None:
    first = "import adapedit_kernels.guided_step.reference, adapedit_kernels.word_relation"
    _python(
        f"{first}; from adapedit_kernels import *; assert callable(guided_step) and callable(word_relation)"
    )


def test_a_name_that_is_none() -> None:
    with pytest.raises(AttributeError, match="'adapedit_kernels' has no attribute 'edit'"):
        _ = adapedit_kernels.edit
    assert set(dir(adapedit_kernels)) == set(adapedit_kernels.__all__)
