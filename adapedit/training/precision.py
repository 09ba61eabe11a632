"""In which precision the stages multiply: what the processor has instructions for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16."""
    known: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # not in all versions of PyTorch
    return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def fast_products() -> AbstractContextManager[Any]:
    """A block whose products are in bfloat16 where this CPU has instructions for it, else in float32.

    Emulated they take seven times as long as in float32.
    """
    return torch.autocast("cpu", torch.bfloat16) if multiplies_bfloat16() else nullcontext()
