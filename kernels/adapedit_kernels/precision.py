"""The precision that the references compute in."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["to_dtype", "wide_dtype"]


def wide_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 where one of the tensors is float64, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def to_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert, leaving no trace in an exported graph where there is nothing to convert."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)
