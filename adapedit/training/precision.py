"""In which precision the stages multiply: what the processor has instructions for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from adapedit_engine.packing import multiplies_bfloat16


def fast_products() -> AbstractContextManager[Any]:
    """A block whose products are in bfloat16 where this CPU has instructions for it, else in float32.

    Emulated they take seven times as long as in float32.
    """
    return torch.autocast("cpu", torch.bfloat16) if multiplies_bfloat16() else nullcontext()
