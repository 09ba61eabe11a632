"""The suite under another default dtype: the product may not notice, and what tests make themselves stays float32."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, _pop_mode_temporarily

ROOT = Path(__file__).parents[2]
TESTS = tuple(f"{ROOT / name}/" for name in ("tests", "benchmarks"))
PRODUCT = tuple(f"{ROOT / name}/" for name in ("adapedit", "engine", "kernels", "export"))
MAKERS = frozenset(
    getattr(torch, name)
    for name in "arange empty empty_strided eye full linspace logspace ones rand randn tensor zeros".split()
)


class MadeInFloat32(TorchFunctionMode):
    """Tensors whose dtype is not named are float32 where a test asks for them, by itself or through a library."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in MAKERS or kwargs.get("dtype") is not None or not _a_test_asks():
            return func(*args, **kwargs)
        usual = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            return func(*args, **kwargs)
        finally:
            torch.set_default_dtype(usual)


def _a_test_asks() -> bool:
    """Whether the innermost code of this project is that of a test, or of the laboratory."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(TESTS):
            return True
        if file.startswith(PRODUCT):
            return False
        frame = frame.f_back  # type: ignore[assignment]
    return False


def traceable() -> AbstractContextManager[Any]:
    """Around what Dynamo traces, which would trace a mode, too."""
    active = torch._C._len_torch_function_stack()
    return _pop_mode_temporarily() if active else nullcontext()
