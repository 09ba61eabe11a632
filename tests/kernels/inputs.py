"""Inputs of the operations for tests, and how results are compared."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from adapedit_kernels import RelationKnobs

LIMITS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3}
"""Largest error that is taken, as the norm of the difference over the norm of what is right."""


class AttentionShape(NamedTuple):
    batch: int
    heads: int
    pixels: int
    tokens: int
    width: int


def error_ratio(got: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm of what is wanted, in float64; NaN anywhere gives NaN."""
    got, wanted = got.double(), wanted.double()
    return float((got - wanted).norm() / wanted.norm().clamp_min(1e-30))


def assert_close(got: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    assert got.shape == wanted.shape
    ratio = error_ratio(got, wanted)
    assert ratio <= LIMITS[dtype], f"error ratio {ratio:.2e}, limit {LIMITS[dtype]:.0e}"


def poisoned(tensor: Tensor, gap: int = 3) -> Tensor:
    """The same values with NaN (for integers: a huge value) around every row, so that a stray read shows."""
    if tensor.dim() == 0 or tensor.dtype == torch.bool:
        return tensor
    poison = float("nan") if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max
    room = torch.full([size + gap for size in tensor.shape], poison, dtype=tensor.dtype)
    inside = room[tuple(slice(size) for size in tensor.shape)]
    inside.copy_(tensor)
    return inside


def attention_inputs(
    shape: AttentionShape, dtype: torch.dtype, source_row: list[int] | None = None, seed: int = 0
) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Tensor]]:
    """Query, key and value, and controls by name; rows repeat and permute unless ``source_row`` says otherwise."""
    torch.manual_seed(seed)
    batch, heads, pixels, tokens, width = shape
    query = torch.randn(batch, heads, pixels, width).to(dtype)
    key = (2 * torch.randn(batch, heads, tokens, width)).to(dtype)
    value = torch.randn(batch, heads, tokens, width).to(dtype)
    rows = source_row if source_row is not None else [(3 * row + 1) % batch for row in range(batch)]
    token_map = torch.eye(tokens)[torch.randint(tokens, (batch, tokens))].transpose(1, 2)
    token_map = (0.8 * token_map + 0.05 * torch.rand(batch, tokens, tokens)).contiguous()
    own_weight = (torch.rand(batch, tokens) < 0.3).float()
    controls = {
        "source_row": torch.tensor(rows),
        "token_map": token_map.to(dtype),
        "own_weight": own_weight.to(dtype),
        "spatial_weight": ((1 - own_weight) * torch.rand(batch, tokens)).to(dtype),
        "spatial_map": torch.rand(batch, pixels).to(dtype),
    }
    return (query, key, value), controls


def relation_inputs(
    batch: int, pixels: int, tokens: int, channels: int, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Maps, features, key tokens and words: padding at both ends, words of one to three tokens, some of them keys."""
    torch.manual_seed(batch + pixels + tokens + channels)
    features = torch.randn(batch, pixels, channels) + 2.0
    maps = (3 * torch.randn(batch, pixels, tokens)).softmax(dim=-1)
    word_of_token = torch.full((batch, tokens), -1)
    key_tokens = torch.zeros(batch, tokens, dtype=torch.bool)
    for row in range(batch):
        place, word = 1, 0
        while place < tokens - 1:
            length = 1 + (word + row) % 3
            word_of_token[row, place : min(place + length, tokens - 1)] = word
            key_tokens[row, place : min(place + length, tokens - 1)] = word % 4 == 1
            place, word = place + length, word + 1
    return {
        "maps": maps.to(dtype),
        "features": features.to(dtype),
        "key_tokens": key_tokens,
        "word_of_token": word_of_token,
    }


def mixed_knobs(batch: int) -> RelationKnobs:
    """Knobs that differ from edit to edit: all forms of every switch, in turns of different length."""
    made = [
        RelationKnobs.make(
            1,
            lambda_tau=0.5 + 0.3 * (row % 4),
            threshold=(0.3, 0.0, 0.05, 0.9)[row % 4],
            threshold_mode=("relative", "absolute")[row // 2 % 2],
            normalise=("sum", "softmax")[row % 2],
            temperature=0.05,
            centre=row % 3 > 0,
            variant=("paper", "released")[row // 4 % 2],
        )
        for row in range(batch)
    ]
    return RelationKnobs(*map(torch.cat, zip(*made, strict=True)))


def step_inputs(
    tracks: int, guidance: int, shape: tuple[int, int, int], dtype: torch.dtype, *, noise: bool, blend: bool
) -> dict[str, Any]:
    """Arguments of the guided step by name; guidance rows are permuted, the last track blends from the first."""
    torch.manual_seed(tracks + guidance + shape[1])
    rows = tracks * guidance + 1
    arguments: dict[str, Any] = {
        "noise_pred": torch.randn(rows, *shape).to(dtype),
        "latents": torch.randn(tracks, *shape).to(dtype),
        "guidance_rows": torch.randperm(rows)[: tracks * guidance].reshape(tracks, guidance),
        "guidance_weights": torch.randn(tracks, guidance),
        "sample_weight": torch.rand(tracks) + 0.5,
        "output_weight": torch.randn(tracks),
    }
    if noise:
        arguments["noise"] = torch.randn(tracks, *shape).to(dtype)
        arguments["noise_weight"] = torch.rand(tracks)
    if blend:
        arguments["blend_mask"] = torch.rand(tracks, 1, *shape[1:])
        arguments["blend_source"] = torch.tensor([(2 * track) % tracks for track in range(tracks)])
    return arguments


def norm_inputs(
    rows: int, channels: int, groups: int, size: tuple[int, int], dtype: torch.dtype
) -> dict[str, Any]:
    """Arguments of group norm by name: channels-last, and far from mean 0."""
    torch.manual_seed(channels + size[0])
    return {
        "x": (torch.randn(rows, channels, *size) * 2 + 1).to(dtype, memory_format=torch.channels_last),
        "weight": torch.randn(channels).to(dtype),
        "bias": torch.randn(channels).to(dtype),
        "groups": groups,
        "eps": 1e-5,
    }


def to_numpy(tensor: Tensor | None) -> Any:
    """Float64 or integers, for the loops."""
    return None if tensor is None else (tensor.double() if tensor.is_floating_point() else tensor).numpy()
