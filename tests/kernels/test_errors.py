"""Every input that can't be used is refused before any work, with what was got, what was wanted and how to mend it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from adapedit_kernels import (
    AdapEditError,
    ImplementationError,
    edited_attention,
    edited_attention_with_maps,
    guided_step,
    spatial_similarity,
    word_relation,
)
from adapedit_kernels.edited_attention.arguments import check_arguments
from tests.kernels.inputs import AttentionShape, attention_inputs, relation_inputs, step_inputs


def _attention(**changes: Any) -> None:
    tensors, controls = attention_inputs(AttentionShape(2, 2, 5, 7, 4), torch.float32)
    edited_attention(**(dict(zip(("query", "key", "value"), tensors, strict=True)) | controls | changes))


ATTENTION = {
    "axes": ({"query": torch.zeros(2, 5, 4)}, r"query has shape \[2, 5, 4\], wanted \[B, H, P, D\]"),
    "heads": (
        {"key": torch.zeros(2, 3, 7, 4)},
        r"key has shape \[2, 3, 7, 4\], wanted \[B, H, N, D\] = \[2, 2, any, 4\]; reshape",
    ),
    "values": ({"value": torch.zeros(2, 2, 6, 4)}, r"value has shape .* = \[2, 2, 7, 4\]"),
    "dtype": (
        {"key": torch.zeros(2, 2, 7, 4).half()},
        r"key is float16, wanted float32; convert it with .to\(\)",
    ),
    "rows": ({"source_row": torch.zeros(2)}, "source_row is float32, wanted int64"),
    "range": ({"source_row": torch.tensor([0, 2])}, "source_row holds rows 0 to 2, wanted 0 to 1"),
    "negative": ({"source_row": torch.tensor([-1, 0])}, "source_row holds rows -1 to 0, wanted 0 to 1"),
    "missing": (
        {"token_map": None},
        r"token_map is None, wanted \[B, N, N\]; give all controls or edited=False",
    ),
    "map": (
        {"spatial_map": torch.zeros(2, 6)},
        r"spatial_map has shape \[2, 6\], wanted \[B, P\] = \[2, 5\]",
    ),
    "sum": ({"map_sum": torch.zeros(2, 7, 5)}, r"map_sum has shape .* wanted \[B, P, N\] = \[2, 5, 7\]"),
    "half sum": ({"map_sum": torch.zeros(2, 5, 7).half()}, "map_sum is float16, wanted float32 or float64"),
    "device": (
        {"own_weight": torch.zeros(2, 7, device="meta")},
        "own_weight is on meta, query on cpu; move them",
    ),
}


@pytest.mark.parametrize(("changes", "message"), ATTENTION.values(), ids=ATTENTION.keys())
def test_edited_attention(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapEditError, match="edited_attention: " + message) as caught:
        _attention(**changes)
    assert "\n" not in str(caught.value)


def test_a_sum_of_maps_that_does_not_fit() -> None:
    tensors, controls = attention_inputs(AttentionShape(2, 1, 4, 9, 8), torch.float32)
    with pytest.raises(
        AdapEditError, match=r"edited_attention: map_sum has shape \[2, 9, 4\], wanted \[B, P, N\]"
    ):
        edited_attention_with_maps(*tensors, **controls, map_sum=torch.zeros(2, 9, 4))
    with pytest.raises(AdapEditError, match="edited_attention: map_sum is given and maps=False, .*leave one"):
        edited_attention_with_maps(*tensors, **controls, maps=False, map_sum=torch.zeros(2, 4, 9))


KERNEL = {
    "tokens": (AttentionShape(2, 1, 4, 129, 8), "129 tokens, the kernel takes 1 to 128; name implementation"),
    "width": (AttentionShape(2, 1, 4, 9, 300), "heads are 300 wide, the kernel takes 8 to 256"),
}


@pytest.mark.parametrize(("shape", "message"), KERNEL.values(), ids=KERNEL.keys())
def test_what_the_kernel_alone_refuses(shape: AttentionShape, message: str) -> None:
    tensors, controls = attention_inputs(shape, torch.float32)
    kernel = {"edited": True, "check_values": True, "chosen": "triton"}
    edited_attention(*tensors, **controls)
    with pytest.raises(AdapEditError, match=message):
        check_arguments(*tensors, tuple(controls.values()), None, **kernel)  # type: ignore[arg-type]


def test_strides_that_the_kernel_can_not_take() -> None:
    tensors, controls = attention_inputs(AttentionShape(2, 1, 4, 9, 8), torch.float32)
    query = tensors[0].transpose(2, 3).contiguous().transpose(2, 3)
    kernel = {"edited": True, "check_values": True, "chosen": "triton"}
    with pytest.raises(
        AdapEditError, match=r"query has stride 4 along its last axis, the kernel takes 1; call"
    ):
        check_arguments(query, *tensors[1:], tuple(controls.values()), None, **kernel)  # type: ignore[arg-type]


RELATION: dict[str, tuple[dict[str, Any], str]] = {
    "words": (
        {"word_of_token": torch.zeros(2, 6).long()},
        r"word_of_token has shape \[2, 6\], wanted \[B, N\]",
    ),
    "keys": ({"key_tokens": torch.zeros(2, 7)}, "key_tokens is float32, wanted bool"),
    "pixels": (
        {"features": torch.zeros(2, 8, 5)},
        r"features has shape \[2, 8, 5\], wanted .* = \[2, 9, any\]",
    ),
    "threshold": ({"threshold": 1.5}, "threshold is 1.5, wanted 0 to 1"),
    "temperature": ({"temperature": 0.0}, "temperature is 0.0, wanted more than 0"),
    "variant": ({"variant": "code"}, "variant is 'code', wanted one of 'paper', 'released'"),
    "empty": ({"features": torch.zeros(2, 9, 0)}, "hold nothing"),
}


@pytest.mark.parametrize(("changes", "message"), RELATION.values(), ids=RELATION.keys())
def test_word_relation(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = relation_inputs(2, 9, 7, 5, torch.float32)
    with pytest.raises(AdapEditError, match="word_relation: .*" + message):
        word_relation(**(arguments | changes))


SIMILARITY: dict[str, tuple[dict[str, Any], str]] = {
    "key": (
        {"key_embedding": torch.zeros(2, 4)},
        r"key_embedding has shape \[2, 4\], wanted \[B, V\] = \[2, 5\]",
    ),
    "square": ({"size": (4, 4)}, r"8 pixels are no square; give map_size=\(height, width\)"),
    "map size": ({"size": (4, 4), "map_size": (3, 3)}, r"map_size \(3, 3\) has not the features' 8 pixels"),
    "size": (
        {"size": (0, 4), "map_size": (2, 4)},
        r"size is \(0, 4\), wanted \(height, width\) of at least 1",
    ),
}


@pytest.mark.parametrize(("changes", "message"), SIMILARITY.values(), ids=SIMILARITY.keys())
def test_spatial_similarity(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"features": torch.zeros(2, 8, 5), "key_embedding": torch.zeros(2, 5)}
    with pytest.raises(AdapEditError, match="spatial_similarity: " + message):
        spatial_similarity(**(arguments | changes))


STEP: dict[str, tuple[dict[str, Any], str]] = {
    "latents": ({"noise_pred": torch.zeros(5, 3, 4, 5)}, r"noise_pred has shape .* = \[any, 3, 4, 4\]"),
    "weights": ({"guidance_weights": torch.zeros(2, 3)}, r"guidance_weights has shape .* = \[2, 2\]"),
    "rows": (
        {"guidance_rows": torch.tensor([[0, 1], [2, 5]])},
        "guidance_rows holds rows 0 to 5, wanted 0 to 4",
    ),
    "source": ({"blend_source": torch.tensor([0, 2])}, "blend_source holds rows 0 to 2, wanted 0 to 1"),
    "pair": ({"noise": None}, "noise_weight is given without noise; give both or neither"),
    "mask": ({"blend_mask": torch.zeros(2, 3, 4, 4)}, r"blend_mask has shape .* = \[2, 1, 4, 4\]"),
}


@pytest.mark.parametrize(("changes", "message"), STEP.values(), ids=STEP.keys())
def test_guided_step(changes: dict[str, Any], message: str) -> None:
    arguments = step_inputs(2, 2, (3, 4, 4), torch.float32, noise=True, blend=True)
    with pytest.raises(AdapEditError, match="guided_step: " + message):
        guided_step(**(arguments | changes))


def test_a_named_implementation_that_can_not_run_is_an_error() -> None:
    tensors, _ = attention_inputs(AttentionShape(2, 2, 5, 7, 4), torch.float32)
    with pytest.raises(ImplementationError, match="'triton' needs CUDA tensors, got cpu; move them, name"):
        edited_attention(*tensors, edited=False, implementation="triton")
    with pytest.raises(
        AdapEditError, match="implementation is 'cuda', wanted one of 'auto', 'reference', 'triton'"
    ):
        edited_attention(*tensors, edited=False, implementation="cuda")


def test_importing_the_package_needs_no_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import adapedit_kernels"
    subprocess.run([sys.executable, "-c", code], check=True)
