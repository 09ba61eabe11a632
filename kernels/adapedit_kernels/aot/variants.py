"""The list of kernels that the C library carries: each with its dtypes, constants and sizes of a program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch

from adapedit_kernels.attention_maps.triton import SUM_BLOCK, map_kernel, map_sum_kernel, map_tile
from adapedit_kernels.edited_attention.triton import choose_tile, edited_attention_kernel
from adapedit_kernels.guided_step.triton import guided_step_kernel
from adapedit_kernels.spatial_similarity.triton import mean_kernel, similarity_kernel
from adapedit_kernels.word_relation.triton import embed_kernel, finish_kernel, relate_kernel

TARGETS = (80, 86, 89, 90, 100, 120)
HEAD_WIDTHS = (40, 64, 80, 160)
TOKENS = 128  # as many as maps and words are made for: fewer are masked, so that one width serves every text encoder
USUAL_TOKENS = 77  # of Stable Diffusion: blocks of 64 and 16, where others are filled up to 128
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}

KERNELS: Mapping[str, Any] = {
    kernel.__name__: kernel
    for kernel in (
        edited_attention_kernel,
        map_kernel,
        map_sum_kernel,
        guided_step_kernel,
        mean_kernel,
        similarity_kernel,
        embed_kernel,
        relate_kernel,
        finish_kernel,
    )
}

_TRITON_NAMES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
_ARGUMENTS = {
    "*i64": "edited_row source_row map_row guidance_rows blend_source word_of_token",
    "*i1": "key_tokens relative centre released",
    "fp32": "exponent_scale map_scale",
    "*fp32": "spatial_map log_sum_exp partial map_sum guidance_weights sample_weight "
    "output_weight noise_weight blend_mask mean key_embedding lambda_spatial out maps features embedding "
    "lambda_tau threshold temperature relation word_steps word_share default_steps",
}
_TYPES = {name: kind for kind, names in _ARGUMENTS.items() for name in names.split()}  # all others are i32
_MANY_PIXELS, _FEW_PIXELS = 1024, 1  # the two sides of the border in choose_tile


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One kernel with everything decided that a compiler has to know; ``name`` is what the C code looks up."""

    name: str
    kernel: str
    dtypes: Mapping[str, str] = field(default_factory=dict)  # of arguments whose dtype is not the usual one
    constants: Mapping[str, int | bool] = field(default_factory=dict)
    aligned: bool = False
    """Addresses of `dtypes` are multiples of 16 bytes, strides of 8 values: 16 bytes are loaded at a time."""
    block: int  # values, pixels or channels that a program takes along the first grid axis
    pixels_from: int = 0  # for calls with at least as many pixels
    num_warps: int = 4

    def signature(self) -> dict[str, str]:
        """Argument -> Triton's name of its type, in the kernel's order."""
        return {name: self._type(name) for name in KERNELS[self.kernel].arg_names}

    def parameters(self) -> tuple[tuple[str, str], ...]:
        """(argument, "pointer" | "float" | "int") of what a launch hands over, in order."""
        kinds = {"f": "float", "i": "int", "*": "pointer"}
        return tuple((name, kinds[kind[0]]) for name, kind in self.signature().items() if kind != "constexpr")

    def units(self) -> dict[str, int]:
        """Argument -> what it is a multiple of: bytes of an address, values of a stride."""
        if not self.aligned:
            return {}
        strides = (
            n for n in KERNELS[self.kernel].arg_names if n.endswith("_stride") and n != "spatial_map_stride"
        )
        return dict.fromkeys(self.dtypes, 16) | dict.fromkeys(strides, 8)

    def _type(self, argument: str) -> str:
        if argument in self.constants:
            return "constexpr"
        if argument in self.dtypes:
            return "*" + _TRITON_NAMES[self.dtypes[argument]]
        return _TYPES.get(argument, "i32")


def all_variants() -> tuple[Variant, ...]:
    """Everything that the library carries."""
    return (*_attention(), *_maps(), *_steps(), *_similarities(), *_relations())


def few_variants() -> tuple[Variant, ...]:
    """Every kernel in float16 and float32 where it has them, both tiles, all dtypes and head widths of attention once.

    What each change is held to.
    """
    wanted = (
        "edited_attention.float16.w40.usual/1024 edited_attention.float16.w64/1024 "
        "edited_attention.bfloat16.w80.usual/1 edited_attention.float16.w160.usual/1 edited_attention.float32.w40/1 "
        "attention_maps.float16.w80.usual/0 attention_maps.float32.w40/0 map_sum/0 "
        "guided_step.float16.noise.blend/0 guided_step.float32.noise.blend/0 "
        "mean.float16/0 mean.float32/0 similarity.float16/0 similarity.float32/0 embed/0 relate/0 finish/0"
    ).split()  # name/pixels
    few = tuple(v for v in all_variants() if f"{v.name}/{v.pixels_from}" in wanted)
    assert len(few) == len(wanted), "a variant named here is not in the full list"
    return few


def _attention() -> Iterator[Variant]:
    tensors = ("query", "key", "values", "out")
    for dtype, width, usual in product(DTYPES, HEAD_WIDTHS, (False, True)):
        tiles = {}
        for pixels in (_MANY_PIXELS, _FEW_PIXELS):
            tile = choose_tile(DTYPES[dtype], width, pixels, USUAL_TOKENS)
            tiles[tile if usual else tile._replace(LAST_N=0)] = pixels
        for tile, pixels in tiles.items():
            if usual and not tile.LAST_N:  # no shorter block: what takes any number takes this one
                continue
            constants = {"WIDTH": width, "SPATIAL": True, "LSE": False, **tile._asdict()}
            num_warps = constants.pop("num_warps")
            yield Variant(
                name=f"edited_attention.{dtype}.w{width}" + ".usual" * usual,
                kernel="edited_attention_kernel",
                dtypes=dict.fromkeys(tensors, dtype),
                constants=constants,
                aligned=True,
                block=tile.BLOCK_P,
                pixels_from=pixels,
                num_warps=num_warps,
            )


def _maps() -> Iterator[Variant]:
    sizes = {"": TOKENS, ".usual": USUAL_TOKENS}
    for dtype, width, name in product(DTYPES, HEAD_WIDTHS, sizes):
        tile = map_tile(width, sizes[name])
        yield Variant(
            name=f"attention_maps.{dtype}.w{width}{name}",
            kernel="map_kernel",
            dtypes={"query": dtype, "key": dtype},
            constants={"WIDTH": width, "LISTED": True, **tile},
            aligned=True,
            block=tile["BLOCK_P"],
        )
    yield Variant(name="map_sum", kernel="map_sum_kernel", constants={"BLOCK": SUM_BLOCK}, block=SUM_BLOCK)


def _steps() -> Iterator[Variant]:
    for dtype, noise, blend in product(DTYPES, (False, True), (False, True)):
        yield Variant(
            name=f"guided_step.{dtype}" + ".noise" * noise + ".blend" * blend,
            kernel="guided_step_kernel",
            dtypes=dict.fromkeys(("noise_pred", "latents", "noise", "out"), dtype),
            constants={"BLOCK": 512, "NOISE": noise, "BLEND": blend},
            block=512,
        )


def _similarities() -> Iterator[Variant]:
    blocks = {"mean": 64, "similarity": 32}
    for dtype, name in product(DTYPES, blocks):
        yield Variant(
            name=f"{name}.{dtype}",
            kernel=f"{name}_kernel",
            dtypes={"features": dtype},
            constants={"BLOCK_P": 32, "BLOCK_V": 64},
            block=blocks[name],
        )


def _relations() -> Iterator[Variant]:
    blocks = {"BLOCK_N": TOKENS, "BLOCK_V": 32}
    yield Variant(name="embed", kernel="embed_kernel", constants={**blocks, "BLOCK_P": 16}, block=32)
    yield Variant(name="relate", kernel="relate_kernel", constants=blocks, block=1)
    yield Variant(name="finish", kernel="finish_kernel", constants={"BLOCK_N": TOKENS}, block=1, num_warps=1)
