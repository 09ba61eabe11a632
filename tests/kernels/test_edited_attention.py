"""Edited attention: the reference against loops written from the specification, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from adapedit_kernels import AdapEditError, dispatch, edited_attention, prepare_values
from tests.kernels.inputs import AttentionShape, assert_close, attention_inputs, widen

SHAPES = [
    AttentionShape(4, 2, 5, 7, 3),  # rows repeat and permute, nothing is a round number
    AttentionShape(2, 1, 1, 1, 1),  # the least there is
    AttentionShape(3, 1, 4, 9, 8),
]


@pytest.mark.parametrize("spatial", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_edited_attention_is_the_loop(shape: AttentionShape, dtype: torch.dtype, spatial: bool) -> None:
    """Two plain attentions with prepared values give what edited probabilities give."""
    for seed in range(3):
        inputs = attention_inputs(shape, dtype, spatial=spatial, seed=seed)
        out = edited_attention(**inputs.arguments(), scale=0.4)
        assert out.dtype == dtype
        assert_close(out, inputs.by_loops(0.4)[0], dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("spatial", [True, False])
def test_sizes_of_stable_diffusion(dtype: torch.dtype, spatial: bool) -> None:
    inputs = attention_inputs(AttentionShape(4, 8, 64, 77, 40), dtype, [1], edited_row=[3], spatial=spatial)
    wanted = edited_attention(**inputs.arguments(widen))
    assert_close(edited_attention(**inputs.arguments()), wanted, dtype)


def test_rows_that_are_their_own_source_are_plain_attention_to_the_last_bit() -> None:
    inputs = attention_inputs(AttentionShape(4, 2, 6, 9, 8), torch.float32, [0, 0, 2, 2])
    edited, plain = edited_attention(**inputs.arguments()), edited_attention(**inputs.plain())
    assert torch.equal(edited[[0, 2]], plain[[0, 2]])
    assert not torch.allclose(edited[[1, 3]], plain[[1, 3]])
    one = attention_inputs(AttentionShape(4, 2, 6, 9, 8), torch.float32, [2], edited_row=[3])
    assert torch.equal(edited_attention(**one.arguments())[:3], edited_attention(**one.plain())[:3])


def test_an_edit_named_twice_is_that_edit() -> None:
    inputs = attention_inputs(AttentionShape(4, 2, 6, 9, 8), torch.float64, [0, 2], edited_row=[1, 3])
    twice = inputs._replace(edits={name: tensor[[0, 1, 0]] for name, tensor in inputs.edits.items()})
    assert torch.equal(edited_attention(**twice.arguments()), edited_attention(**inputs.arguments()))


def test_an_edit_with_own_weight_one_is_plain_attention() -> None:
    inputs = attention_inputs(AttentionShape(3, 2, 6, 9, 8), torch.float64)
    inputs.edits["own_weight"] = torch.ones_like(inputs.edits["own_weight"])
    inputs.edits["spatial_weight"] = torch.zeros_like(inputs.edits["spatial_weight"])
    assert_close(edited_attention(**inputs.arguments()), edited_attention(**inputs.plain()), torch.float64)


def test_values_of_layers_side_by_side_are_prepared_at_once() -> None:
    inputs = attention_inputs(AttentionShape(3, 2, 1, 9, 8), torch.float64)
    names = ("edited_row", "token_map", "own_weight", "spatial_weight")
    edits = {name: inputs.edits[name] for name in names}
    value, other = inputs.tensors[2], inputs.tensors[1]
    both = prepare_values(torch.cat([value, other], -1), **edits)
    apart = [prepare_values(values, **edits) for values in (value, other)]
    assert both.shape == (2, 3, 2, 9, 32)
    assert_close(both, torch.cat(apart, -1), torch.float64)


def test_edited_attention_has_gradients() -> None:
    inputs = attention_inputs(AttentionShape(2, 1, 3, 4, 2), torch.float64)

    def run(*tensors: Tensor) -> Any:
        return edited_attention(**inputs._replace(tensors=tensors).arguments())  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(run, tuple(tensor.requires_grad_() for tensor in inputs.tensors))


def _attention(**changes: Any) -> None:
    edited_attention(**attention_inputs(AttentionShape(2, 2, 5, 7, 4), torch.float32).arguments() | changes)


ATTENTION = {
    "axes": ({"query": torch.zeros(5, 8)}, r"query has shape \[5, 8\], wanted \[B, P, C\]"),
    "channels": (
        {"key": torch.zeros(2, 7, 6)},
        r"key has shape \[2, 7, 6\], wanted \[B, N, C\] = \[2, any, 8\]; reshape",
    ),
    "values": ({"value": torch.zeros(2, 6, 8)}, r"value has shape .* = \[2, 7, 8\]"),
    "heads": ({"heads": 3}, "heads is 3, wanted a divisor of the 8 channels"),
    "no heads": ({"heads": 0}, "heads is 0, wanted a divisor"),
    "dtype": ({"key": torch.zeros(2, 7, 8).half()}, r"key is float16, wanted float32; convert it with .to\(\)"),
    "rows": ({"source_row": torch.zeros(2)}, "source_row is float32, wanted int64"),
    "range": ({"source_row": torch.tensor([0, 2])}, "source_row holds rows 0 to 2, wanted 0 to 1"),
    "negative": ({"edited_row": torch.tensor([-1, 0])}, "edited_row holds rows -1 to 0, wanted 0 to 1"),
    "count": ({"source_row": torch.zeros(3, dtype=torch.int64)}, r"source_row has shape \[3\], wanted \[E\] = \[2\]"),
    "missing": ({"prepared": None}, "prepared is None and edited_row is not; give all of the edit or none"),
    "parts": ({"prepared": torch.zeros(2, 2, 1, 7, 8)}, r"prepared has shape .* = \[2, 2, 2, 7, 8\]"),
    "no map": ({"spatial_map": None}, r"prepared has shape .*, wanted \[2, E, 1, N, C\] = \[2, 2, 1, 7, 8\]"),
    "map": ({"spatial_map": torch.zeros(2, 6)}, r"spatial_map has shape \[2, 6\], wanted \[E, P\] = \[2, 5\]"),
    "device": ({"spatial_map": torch.zeros(2, 5, device="meta")}, "spatial_map is on meta, query on cpu; move them"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), ATTENTION.values(), ids=ATTENTION.keys())
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapEditError, match="edited_attention: " + message) as caught:
        _attention(**changes)
    assert "\n" not in str(caught.value)


@pytest.fixture
def as_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "implementation_for", lambda *_: "triton")


@pytest.mark.usefixtures("as_triton")
def test_what_the_kernel_alone_refuses() -> None:
    wide = attention_inputs(AttentionShape(2, 1, 4, 9, 300), torch.float32).arguments()
    with pytest.raises(AdapEditError, match="heads are 300 wide, the kernel takes 8 to 256; name"):
        edited_attention(**wide)
    given = attention_inputs(AttentionShape(2, 1, 4, 9, 8), torch.float32).arguments()
    given["query"] = torch.zeros(2, 8, 4).transpose(1, 2)
    with pytest.raises(
        AdapEditError, match=r"query has stride 4 along its last axis, the kernel takes 1; call"
    ):
        edited_attention(**given)
