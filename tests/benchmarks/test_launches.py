"""Edits on a device that is made up, in published shapes: nothing waits, nothing crosses, and steps are counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapedit.methods import AdapEdit, PromptToPrompt
from adapedit_engine.batch import Call
from benchmarks import launches
from benchmarks.launches import Crossing, Shape, recorded


@pytest.fixture(scope="module")
def models() -> dict[str, Shape]:
    return launches.models()


@pytest.fixture(scope="module")
def plain(models: dict[str, Shape]) -> launches.Pass:
    """One step of plain generation."""
    (found,) = recorded(models["Stable Diffusion v1.4"], launches.EDITS["plain"])
    return found


@pytest.mark.parametrize("edit", launches.EDITS)
def test_no_edit_waits_for_the_device_and_each_pass_joins_by_one_copy(
    edit: str, models: dict[str, Shape], plain: launches.Pass
) -> None:
    """Steps, what is between passes, joining and leaving: see `launches` for what would raise."""
    for one in recorded(models["Stable Diffusion v1.4"], launches.EDITS[edit]):
        assert one.copies == 1
        # Self-attention gathers in the coarse layers alone, and launches around the model are a matter of microseconds.
        assert 0 <= one.model - plain.model <= 2 * 6 + 3
        # Edited attention has a launch in each of sixteen layers.
        assert one.around <= plain.around + 90 and one.own <= plain.own + 16 + 5


def test_no_edit_of_the_larger_model_waits(models: dict[str, Shape]) -> None:
    for edit in ("adapedit, local blend", "adapedit, two passes, local blend"):
        assert all(one.copies == 1 for one in recorded(models["SDXL"], launches.EDITS[edit]))


def test_times_that_the_first_pass_found_widen_no_layer(models: dict[str, Shape]) -> None:
    """They are not read, and yet self-attention gathers where the method says and nowhere else."""
    model = models["Stable Diffusion v1.4"]
    (known,), (_, found) = (recorded(model, kind) for kind in (PromptToPrompt(), AdapEdit(two_pass=True)))
    assert found.model == known.model


def reads_a_value(call: Call) -> None:
    float(call.tracks["latents"].mean())


def copies_to_the_host(call: Call) -> None:
    call.tracks["latents"].cpu()


def asks_which(call: Call) -> None:
    call.tracks["step"].nonzero()


def mixes_sides(call: Call) -> None:
    call.tracks["latents"].add(torch.ones(1, 4, 64, 64))


def copies_a_table_in_a_step(call: Call) -> None:
    call.tracks["step"].copy_(torch.zeros(len(call.tracks["step"])), non_blocking=True)


@pytest.mark.parametrize(
    "does", [reads_a_value, copies_to_the_host, asks_which, mixes_sides, copies_a_table_in_a_step]
)
def test_what_would_wait_is_noticed(
    does: Any, models: dict[str, Shape], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = Call.inputs
    monkeypatch.setattr(Call, "inputs", lambda call: (does(call), inputs(call))[1])
    with pytest.raises((Crossing, RuntimeError, NotImplementedError)):
        recorded(models["Stable Diffusion v1.4"], launches.EDITS["plain"])
