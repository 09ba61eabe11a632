"""Edited cross-attention as a plug-in of full TensorRT that carries the project's Triton kernel as PTX.

TensorRT launches the kernel itself, so plans need neither Python nor Triton where they run. Not run where this was
written: full TensorRT can't be installed there. Signatures are held to those of its bindings package by a test.

Annotations are read while the functions are registered, so they must not be strings here.
"""

# The types come with the module that is passed in, which a type checker does not follow.
# mypy: disable-error-code="valid-type, name-defined, attr-defined"

from types import ModuleType
from typing import Tuple  # noqa: UP035 - the bindings look for typing's

import torch

NAMESPACE, NAME = "adapedit", "EditedAttention"
PLUGIN = f"{NAMESPACE}::{NAME}"
DTYPES = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16}


def register(trt: ModuleType, plugin: ModuleType, *, capability: int, lazy: bool = False) -> None:
    """Make the plug-in known, for building plans for sm_`capability`.

    trt, plugin: `tensorrt` and `tensorrt.plugin`. Inputs: query [B, P, H * D], key and value [B, N, H * D], and
    the controls; outputs: [B, P, H * D] in the query's dtype, and the rows' own maps [B, P, N] float32, averaged
    over heads. P is fixed by the graph, B is open.
    """
    desc = plugin.TensorDesc

    @plugin.register(PLUGIN, lazy_register=lazy)
    def describe(
        query: desc,
        key: desc,
        value: desc,
        source_row: desc,
        token_map: desc,
        own_weight: desc,
        spatial_weight: desc,
        spatial_map: desc,
        heads: int,
        scale: float,
    ) -> Tuple[desc, desc]:  # noqa: UP006
        shape = plugin.ShapeExprs.from_tuple((query.shape_expr[0], query.shape_expr[1], key.shape_expr[1]))
        return query.like(), plugin.from_shape_expr(shape, trt.DataType.FLOAT)

    @plugin.aot_impl(PLUGIN)
    def implement(
        query: desc,
        key: desc,
        value: desc,
        source_row: desc,
        token_map: desc,
        own_weight: desc,
        spatial_weight: desc,
        spatial_map: desc,
        heads: int,
        scale: float,
        outputs: Tuple[desc, desc],  # noqa: UP006
        tactic: int,
    ) -> Tuple[str, str, plugin.KernelLaunchParams, plugin.SymExprs]:  # noqa: UP006
        from adapedit_export.tensorrt.plugin_kernel import compile_kernel

        batch, pixels, tokens = query.shape_expr[0], query.shape_expr[1], key.shape_expr[1]
        compiled = compile_kernel(
            dtype=DTYPES[query.dtype.name],
            heads=heads,
            width=query.shape_expr[2].constant_value() // heads,
            pixels=pixels.constant_value(),
            tokens=tokens.constant_value(),
            scale=scale,
            capability=capability,
        )
        # Averaging over heads in registers: one program goes through all heads of its pixels.
        launch = plugin.KernelLaunchParams(
            grid_x=plugin.cdiv(pixels, compiled.tile.BLOCK_P),
            grid_y=1,
            grid_z=batch,
            block_x=compiled.threads,
            shared_mem=compiled.shared_bytes,
        )
        sizes = plugin.SymIntExprs(3)
        for place, size in enumerate((batch, pixels, tokens)):
            sizes[place] = plugin.SymInt32(size)
        return compiled.name, compiled.ptx, launch, sizes
