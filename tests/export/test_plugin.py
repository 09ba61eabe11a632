"""The plug-in of full TensorRT: its kernel compiles here, its signatures are held to NVIDIA's bindings."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch

from adapedit_engine.runners.tensorrt_library import load, why_not
from adapedit_export.tensorrt.plugin import PLUGIN, register

BINDINGS = "tensorrt_bindings"

pytestmark = pytest.mark.skipif(
    find_spec(BINDINGS) is None or why_not("tensorrt-rtx") is not None,
    reason="the bindings of TensorRT, or those for RTX, are not installed",
)


@pytest.fixture
def plugin(monkeypatch) -> Iterator[ModuleType]:
    """`tensorrt.plugin` of the bindings package, over RTX's module, which loads without TensorRT's libraries."""
    stand_in = ModuleType("tensorrt")
    stand_in.__dict__.update(load("tensorrt-rtx").module.__dict__)
    spec = find_spec(BINDINGS)
    assert spec is not None and spec.submodule_search_locations
    stand_in.__path__ = list(spec.submodule_search_locations)
    for missing in ("ISymExpr", "IPluginV3QuickAOTBuild", "QuickPluginCreationRequest"):
        if not hasattr(stand_in, missing):
            setattr(stand_in, missing, type(missing, (), {}))
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in)
    yield importlib.import_module("tensorrt.plugin")
    for name in [name for name in sys.modules if name.startswith("tensorrt.plugin")]:
        del sys.modules[name]


def test_the_bindings_take_the_registration(plugin):
    register(sys.modules["tensorrt"], plugin, capability=89, lazy=True)
    library = importlib.import_module("tensorrt.plugin._lib")
    defined = library.QDP_REGISTRY[PLUGIN]
    assert defined.input_tensor_names[:4] == ["query", "key", "value", "source_row"]
    assert list(defined.input_attrs) == ["heads", "scale"] and defined.num_outputs == 2
    assert defined.aot_impl_func is not None


def test_what_the_implementation_calls_is_there(plugin):
    launch = inspect.signature(plugin.KernelLaunchParams.__init__).parameters
    assert {"grid_x", "grid_y", "grid_z", "block_x", "shared_mem"} <= set(launch)
    assert list(inspect.signature(plugin.cdiv).parameters) == ["first", "second"]
    assert list(inspect.signature(plugin.from_shape_expr).parameters) == ["shape_expr", "dtype"]
    assert callable(plugin.ShapeExprs.from_tuple) and callable(plugin.SymInt32)
    sizes = plugin.SymIntExprs(3)
    sizes[0] = plugin.SymInt32(7)
    assert len(sizes) == 3


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize(
    ("dtype", "heads", "width", "pixels", "tokens", "capability"),
    [
        (torch.float16, 8, 40, 4096, 77, 80),
        (torch.float16, 8, 160, 64, 77, 90),
        (torch.float32, 3, 32, 256, 24, 89),
    ],
)
def test_the_kernel_becomes_ptx_with_the_plug_ins_arguments(dtype, heads, width, pixels, tokens, capability):
    from adapedit_export.tensorrt.plugin_kernel import OUTPUTS, POINTERS, SIZES, compile_kernel

    compiled = compile_kernel(
        dtype=dtype,
        heads=heads,
        width=width,
        pixels=pixels,
        tokens=tokens,
        scale=width**-0.5,
        capability=capability,
    )
    assert f".target sm_{capability}" in compiled.ptx and compiled.threads % 32 == 0
    entry = re.search(rf"\.entry {compiled.name}\((.*?)\)", compiled.ptx, re.DOTALL)
    assert entry is not None
    kinds = re.findall(r"\.param \.(\w+)", entry[1])
    assert len(kinds) == len(POINTERS) + len(SIZES) + len(OUTPUTS)
    assert kinds[len(POINTERS) : -len(OUTPUTS)] == ["u32"] * len(SIZES)
    assert compiled.shared_bytes <= 99 * 1024
