"""Inputs of the operations for tests, and how results are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adapedit_kernels import RelationKnobs, prepare_values
from tests.kernels import loops

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


class AttentionInputs(NamedTuple):
    """Query, key and value [B, P, H D], and what is edited: lists of E entries by name."""

    tensors: tuple[Tensor, Tensor, Tensor]
    edits: dict[str, Tensor]
    heads: int

    def arguments(self, convert: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> dict[str, Any]:
        """Of `edited_attention`, by name: every tensor converted, values prepared from what was converted."""
        value = convert(self.tensors[2])
        edits = {name: convert(tensor) for name, tensor in self.edits.items()}
        source_row, spatial_map = edits.pop("source_row"), edits.pop("spatial_map", None)
        prepared = prepare_values(value, **edits, spatial=spatial_map is not None)
        rows = {"edited_row": edits["edited_row"], "source_row": source_row}
        return self.plain(convert) | rows | {"prepared": prepared, "spatial_map": spatial_map}

    def plain(self, convert: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> dict[str, Any]:
        """The same without edits."""
        query, key, value = map(convert, self.tensors)
        return {"query": query, "key": key, "value": value, "heads": self.heads}

    def by_loops(self, scale: float) -> tuple[Tensor, Tensor]:
        """Output [B, P, H D] and own maps [B, P, N], by plain loops in float64."""
        split = [to_numpy(t.unflatten(-1, (self.heads, -1)).transpose(1, 2)) for t in self.tensors]
        edits = {name: to_numpy(tensor) for name, tensor in self.edits.items()}
        out, maps = loops.edited_attention(*split, **edits, scale=scale)
        return torch.from_numpy(out).transpose(1, 2).flatten(2), torch.from_numpy(maps)


def widen(tensor: Tensor) -> Tensor:
    """In float64, where it has a floating dtype."""
    return tensor.double() if tensor.is_floating_point() else tensor


def attention_inputs(
    shape: AttentionShape,
    dtype: torch.dtype,
    source_row: list[int] | None = None,
    *,
    edited_row: list[int] | None = None,
    spatial: bool = True,
    seed: int = 0,
) -> AttentionInputs:
    """All rows in turn take from others that repeat and permute, unless rows say otherwise."""
    torch.manual_seed(seed)
    batch, heads, pixels, tokens, width = shape
    edited = list(range(batch)) if edited_row is None else edited_row
    rows = source_row if source_row is not None else [(3 * row + 1) % batch for row in edited]
    edits, channels = len(edited), heads * width
    query = torch.randn(batch, pixels, channels).to(dtype)
    key = (2 * torch.randn(batch, tokens, channels)).to(dtype)
    value = torch.randn(batch, tokens, channels).to(dtype)
    token_map = torch.eye(tokens)[torch.randint(tokens, (edits, tokens))].transpose(1, 2)
    token_map = (0.8 * token_map + 0.05 * torch.rand(edits, tokens, tokens)).contiguous()
    own_weight = (torch.rand(edits, tokens) < 0.3).float()
    controls = {
        "edited_row": torch.tensor(edited),
        "source_row": torch.tensor(rows),
        "token_map": token_map.to(dtype),
        "own_weight": own_weight.to(dtype),
        "spatial_weight": ((1 - own_weight) * torch.rand(edits, tokens)).to(dtype),
    }
    if spatial:
        controls["spatial_map"] = torch.rand(edits, pixels).to(dtype)
    return AttentionInputs((query, key, value), controls, heads)


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
