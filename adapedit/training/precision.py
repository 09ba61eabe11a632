"""In which precision the stages multiply: what the processor has instructions for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

BFLOAT16 = ("avx512_bf16", "amx_bf16")
"""Instructions that multiply bfloat16. Without them it is emulated, at a seventh of the speed of float32."""


def fast_products() -> AbstractContextManager[Any]:
    """A block whose products are in bfloat16 where this CPU has instructions for it, else in float32."""
    known = torch.cpu.get_capabilities()
    if any(known.get(name, False) for name in BFLOAT16):
        return torch.autocast("cpu", torch.bfloat16)
    return nullcontext()
