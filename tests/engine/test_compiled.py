"""The compiled runner compiles once for a number of rows, whatever an edit asks for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from adapedit_engine import denoise
from adapedit_engine.runners.compiled import CompiledRunner
from tests.engine.tiny import edit_plan, plan, self_share, tiny_unet


class Shortened(CompiledRunner):
    """Adds up its inputs in place of a UNet, which takes a while to be traced."""

    def _predict(self, sample: Any, timestep: Any, controls: Any, projected: Any) -> Any:
        used = [timestep, *controls.as_dict().values(), *(tensor for pair in projected for tensor in pair)]
        return sample * sum(tensor.sum() for tensor in used).tanh(), None, None


@pytest.fixture
def counter() -> CompileCounter:
    torch.compiler.reset()
    return CompileCounter()


def test_methods_share_a_compilation(counter: CompileCounter) -> None:
    unet = tiny_unet()
    shared = self_share(unet, 0.5)
    plans = [
        edit_plan(1, 2),
        plan(1, 2),
        edit_plan(1, 2, self_query=shared),
        edit_plan(1, 2, self_query=shared, self_key=shared),
        edit_plan(1, 2, self_key=shared, self_value=shared),
    ]
    with Shortened(unet, backend=counter) as runner:
        for each in plans:
            denoise([each], runner)
        denoise([plan(1), plan(2)], runner)  # as many rows, of two edits
    assert counter.frame_count == 1


def test_more_numbers_of_rows_than_pytorch_allows_for(counter: CompileCounter) -> None:
    with (
        torch._dynamo.config.patch(recompile_limit=1),
        Shortened(tiny_unet(), backend=counter) as runner,
    ):
        for tracks in (1, 2, 3):
            denoise([plan(*range(tracks))], runner)
        assert torch._dynamo.config.recompile_limit == 1
    assert counter.frame_count == 3
