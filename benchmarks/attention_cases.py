"""Edited cross-attention at the shapes of Stable Diffusion v1.4: inputs, rivals, bytes, and what is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapedit_kernels import edited_attention, edited_attention_with_maps

HEADS, TOKENS = 8, 77
ROWS_PER_EDIT = 4  # source and target, without and with their prompt: the last takes maps from the second
LIMITS = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
"""Largest norm of the error over the norm of the float64 result."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One resolution of the UNet: ``side``² pixels, heads ``width`` wide."""

    side: int
    width: int

    @property
    def pixels(self) -> int:
        return self.side**2


LAYERS = (
    Layer(side=64, width=40),
    Layer(side=32, width=80),
    Layer(side=16, width=160),
    Layer(side=8, width=160),
)
ROWS = (4, 8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Tensors of one call; heads lie beside one another in memory, as a UNet's projections leave them."""

    query: Tensor  # [B, H, P, D]
    key: Tensor  # [B, H, N, D]
    value: Tensor  # [B, H, N, D]
    controls: Mapping[str, Tensor]
    map_sum: Tensor  # [B, P, N] float32

    @property
    def edited_rows(self) -> Tensor:
        source = self.controls["source_row"]
        return (source != torch.arange(len(source), device=source.device)).nonzero()[:, 0]


def make_case(
    layer: Layer,
    rows: int,
    dtype: torch.dtype,
    device: str,
    *,
    heads: int = HEADS,
    tokens: int = TOKENS,
    seed: int = 0,
) -> Case:
    """Random tensors of one layer; every fourth row is edited, or all rows but the first where there are fewer."""
    generator = torch.Generator().manual_seed(seed)

    def heads_first(length: int, factor: float = 1.0) -> Tensor:
        tensor = factor * torch.randn(rows, length, heads, layer.width, generator=generator)
        return tensor.to(device, dtype).transpose(1, 2)

    row = torch.arange(rows)
    last = row % ROWS_PER_EDIT == ROWS_PER_EDIT - 1
    own = (torch.rand(rows, tokens, generator=generator) < 0.2).float()
    permuted = torch.rand(rows, tokens, tokens, generator=generator).argsort(dim=-1)[:, :, 0]
    controls = {
        "source_row": torch.where(last, row - 2, row),
        "token_map": torch.nn.functional.one_hot(permuted, tokens).transpose(1, 2).float().contiguous(),
        "own_weight": own,
        "spatial_weight": (1 - own) * torch.rand(rows, tokens, generator=generator),
        "spatial_map": torch.rand(rows, layer.pixels, generator=generator),
    }
    return Case(
        query=heads_first(layer.pixels),
        key=heads_first(tokens, 2.0),
        value=heads_first(tokens),
        controls={name: control.to(device) for name, control in controls.items()},
        map_sum=torch.zeros(rows, layer.pixels, tokens, device=device),
    )


def eager(case: Case) -> Callable[[], Tensor]:
    """Probabilities in memory, in the dtype of the model, edited there: how Prompt-to-Prompt does it.

    What does not depend on the probabilities is prepared here, so that it is not timed.
    """
    dtype, scale = case.query.dtype, case.query.shape[-1] ** -0.5
    edited = case.edited_rows
    chosen = {name: control[edited] for name, control in case.controls.items()}
    source, token_map = chosen["source_row"], chosen["token_map"].to(dtype)[:, None]
    weight = (
        chosen["own_weight"][:, None] + chosen["spatial_weight"][:, None] * chosen["spatial_map"][..., None]
    )
    weight = weight.to(dtype)[:, None]  # [edited rows, 1, P, N]

    def run() -> Tensor:
        probs = ((scale * case.query) @ case.key.transpose(-1, -2)).softmax(dim=-1)  # [B, H, P, N]
        remapped = probs[source] @ token_map
        probs[edited] = remapped + weight * (probs[edited] - remapped)
        return probs @ case.value

    return run


def variants(case: Case, implementation: str = "triton") -> dict[str, Callable[[], Any]]:
    """The kernel with and without maps, and what it is held against."""
    query, key, value = case.query, case.key, case.value
    named: dict[str, Any] = {"implementation": implementation, "check_values": False}
    edit: dict[str, Any] = named | dict(case.controls)
    return {
        "sdpa": lambda: torch.nn.functional.scaled_dot_product_attention(query, key, value),
        "eager": eager(case),
        "plain": lambda: edited_attention(query, key, value, edited=False, **named),
        "edited": lambda: edited_attention(query, key, value, **edit),
        "edited with maps": lambda: edited_attention(query, key, value, map_sum=case.map_sum, **edit),
    }


def least_bytes(case: Case) -> dict[str, int]:
    """Bytes that cannot be avoided: every input read once and every output written once."""

    def size(*tensors: Tensor) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    plain = 2 * size(case.query) + size(case.key, case.value)
    rows = case.edited_rows
    probs = case.query.shape[:3].numel() * case.key.shape[2] * case.query.element_size()
    source = case.controls["source_row"][rows]
    edit = size(case.query[source], case.key[source], *(control[rows] for control in case.controls.values()))
    return {
        "sdpa": plain,
        "eager": plain + edit + 4 * probs,  # logits and probabilities, each written and read
        "plain": plain,
        "edited": plain + edit,
        "edited with maps": plain + edit + 2 * size(case.map_sum),
    }


def error(case: Case, implementation: str = "triton") -> dict[str, float]:
    """Norm of the error over the norm of what float64 gives: of the output and of the maps."""
    wide = [tensor.double() for tensor in (case.query, case.key, case.value)]
    controls = {n: c.double() if c.is_floating_point() else c for n, c in case.controls.items()}
    wanted, maps = edited_attention_with_maps(*wide, **controls, implementation="reference")
    map_sum = torch.zeros_like(case.map_sum)
    out = edited_attention(
        case.query, case.key, case.value, **case.controls, map_sum=map_sum, implementation=implementation
    )
    assert maps is not None
    return {
        "output": float((out.double() - wanted).norm() / wanted.norm()),
        "maps": float((map_sum.double() - maps).norm() / maps.norm()),
    }
