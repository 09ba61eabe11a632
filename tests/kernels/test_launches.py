"""What a launch makes Triton compile: the same whatever the number of rows and whatever their knobs."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from adapedit_kernels.attention_maps.triton import launch as add_maps
from adapedit_kernels.edited_attention.triton import write_edited as attend
from adapedit_kernels.group_norm.triton import launch as norm
from adapedit_kernels.guided_step.triton import launch as step
from adapedit_kernels.word_relation.triton import launch as relate
from tests.kernels.inputs import (
    AttentionShape,
    attention_inputs,
    mixed_knobs,
    norm_inputs,
    relation_inputs,
    step_inputs,
)
from tests.kernels.launches import caught

ROWS = (1, 3, 16, 32)


def attention(rows: int) -> None:
    given = attention_inputs(AttentionShape(rows, 2, 9, 19, 16), torch.float16).arguments()
    edits = [given[name] for name in ("edited_row", "source_row", "prepared", "spatial_map")]
    attend(given["query"], given["key"], torch.empty_like(given["query"]), 2, edits, 0.25)


def maps(rows: int) -> None:
    given = attention_inputs(AttentionShape(rows, 2, 9, 19, 16), torch.float16).plain()
    add_maps(given["query"], given["key"], 2, torch.arange(rows), torch.zeros(rows, 9, 19), 1.0, 0.25)


def guided(rows: int) -> None:
    step(*step_inputs(rows, 2, (4, 8, 8), torch.float16, noise=True, blend=True).values())


def relation(rows: int) -> None:
    relate(**relation_inputs(rows, 16, 19, 32, torch.float32), knobs=mixed_knobs(rows))


def normed(rows: int) -> None:
    norm(**norm_inputs(rows, 20, 2, (23, 29), torch.float16), silu=True)


@pytest.mark.parametrize("operation", [attention, maps, guided, relation, normed])
def test_every_number_of_rows_is_one_compilation(operation) -> None:
    with caught() as launches:
        for rows in ROWS:
            operation(rows)
    kernels = {launch.source.fn.__name__ for launch in launches}
    assert len(launches) == len(ROWS) * len(kernels)
    assert len({launch.source.hash() for launch in launches}) == len(kernels)


@pytest.mark.parametrize("channels", [320, 2560])
def test_group_norm_compiles_and_keeps_its_values_in_registers(channels: int) -> None:
    with caught() as launches:
        norm(**norm_inputs(1, channels, 32, (64, 64), torch.float16), silu=True)
    for launch in launches:
        compiled = launch.compile()
        assert ".local" not in compiled.asm["ptx"] and "st.global" in compiled.asm["ptx"]
