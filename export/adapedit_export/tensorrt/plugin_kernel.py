"""The project's Triton kernel with the arguments that a plug-in gets: inputs, then sizes, then outputs."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import re
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from adapedit_kernels.aot.compile import PTX_VERSION
from adapedit_kernels.edited_attention.triton import (
    Tile,
    choose_tile,
    edited_attention_kernel,
    padded_tokens,
)

POINTERS = "query key value source_row token_map own_weight spatial_weight spatial_map".split()
SIZES = "batch pixels tokens".split()
OUTPUTS = "out maps".split()
_LOG2_E = 1.4426950408889634


@triton.jit
def plugin_kernel(
    query,
    key,
    value,
    source_row,
    token_map,
    own_weight,
    spatial_weight,
    spatial_map,
    batch,
    pixels,
    tokens,
    out,
    maps,
    EXPONENT_SCALE: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKED_VALUES: tl.constexpr,
):
    CHANNELS: tl.constexpr = HEADS * WIDTH
    # The kernel adds to its maps, and a plug-in's output comes with whatever was in its memory.
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    token = tl.arange(0, BLOCK_N)
    place = maps + (tl.program_id(2) * pixels + pixel[:, None]).to(tl.int64) * tokens + token[None, :]
    inside = (pixel[:, None] < pixels) & (token[None, :] < tokens)
    tl.store(place, tl.zeros([BLOCK_P, BLOCK_N], dtype=tl.float32), mask=inside)
    tl.debug_barrier()
    edited_attention_kernel(
        query=query,
        key=key,
        value=value,
        out=out,
        source_row=source_row,
        token_map=token_map,
        own_weight=own_weight,
        spatial_weight=spatial_weight,
        spatial_map=spatial_map,
        map_sum=maps,
        exponent_scale=EXPONENT_SCALE,
        map_scale=1.0 / HEADS,
        batch=batch,
        heads=HEADS,
        pixels=pixels,
        tokens=tokens,
        query_batch_stride=pixels * CHANNELS,
        query_head_stride=WIDTH,
        query_pixel_stride=CHANNELS,
        key_batch_stride=tokens * CHANNELS,
        key_head_stride=WIDTH,
        key_token_stride=CHANNELS,
        value_batch_stride=tokens * CHANNELS,
        value_head_stride=WIDTH,
        value_token_stride=CHANNELS,
        out_batch_stride=pixels * CHANNELS,
        out_head_stride=WIDTH,
        out_pixel_stride=CHANNELS,
        token_map_batch_stride=tokens * tokens,
        token_map_stride=tokens,
        own_weight_stride=tokens,
        spatial_weight_stride=tokens,
        spatial_map_stride=pixels,
        map_batch_stride=pixels * tokens,
        map_pixel_stride=tokens,
        WIDTH=WIDTH,
        BLOCK_P=BLOCK_P,
        BLOCK_N=BLOCK_N,
        BLOCK_D=BLOCK_D,
        CHUNK=CHUNK,
        CHUNKED_VALUES=CHUNKED_VALUES,
        EDITED=True,
        MAPS=True,
        STRIDE_UNIT=1,
    )


class Compiled(NamedTuple):
    """PTX for one architecture, with what a launch needs. A program takes `tile.BLOCK_P` pixels of one row."""

    name: str
    ptx: str
    threads: int
    shared_bytes: int
    tile: Tile


def compile_kernel(
    *, dtype: torch.dtype, heads: int, width: int, pixels: int, tokens: int, scale: float, capability: int
) -> Compiled:
    """The plug-in's kernel for query, key and value of `dtype`, as PTX for sm_`capability`; takes no GPU.

    pixels and tokens choose the tile; the kernel takes any number of pixels, and up to as many tokens as the
    next power of two. The controls are float32.
    """
    tile = choose_tile(dtype, width, pixels, tokens, maps=True)
    element = {torch.float16: "fp16", torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    signature = dict.fromkeys(("query", "key", "value", "out"), f"*{element}")
    signature |= dict.fromkeys((*POINTERS[4:], "maps"), "*fp32") | dict.fromkeys(SIZES, "i32")
    constants = {
        "EXPONENT_SCALE": scale * _LOG2_E,
        "HEADS": heads,
        "WIDTH": width,
        "BLOCK_N": padded_tokens(tokens),
        **{name: getattr(tile, name) for name in ("BLOCK_P", "BLOCK_D", "CHUNK", "CHUNKED_VALUES")},
    }
    signature |= {"source_row": "*i64"} | dict.fromkeys(constants, "constexpr")
    ordered = {name: signature[name] for name in (*POINTERS, *SIZES, *OUTPUTS, *constants)}
    compiled = triton.compile(
        ASTSource(fn=plugin_kernel, signature=ordered, constexprs=constants),
        target=GPUTarget("cuda", capability, 32),
        # Triton's assembler for newer GPUs writes newer PTX than a driver of CUDA 13.0 reads.
        options={
            "num_warps": tile.num_warps,
            **({"ptx_version": PTX_VERSION} if capability >= 90 else {}),
        },
    )
    metadata = compiled.metadata
    ptx = without_unused_parameters(compiled.asm["ptx"])
    return Compiled(metadata.name, ptx, metadata.num_warps * 32, metadata.shared, tile)


def without_unused_parameters(ptx: str) -> str:
    """Drop trailing parameters that nothing reads: Triton adds some of its own, and TensorRT passes the plug-in's."""
    head = re.search(r"\.visible \.entry \w+\((.*?)\)", ptx, re.DOTALL)
    if head is None:
        return ptx
    parameters = [line.strip().rstrip(",") for line in head[1].strip().splitlines()]
    body = ptx[head.end() :]
    while parameters and not re.search(rf"\b{re.escape(parameters[-1].split()[-1])}\b", body):
        parameters.pop()
    listed = ",\n".join(f"\t{parameter}" for parameter in parameters)
    return ptx[: head.start(1)] + f"\n{listed}\n" + ptx[head.end(1) :]
