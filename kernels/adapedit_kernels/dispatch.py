"""Which implementation of an operation runs: named by the caller, or resolved from the device."""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from adapedit_kernels.checks import check_choice
from adapedit_kernels.errors import ImplementationError

__all__ = ["IMPLEMENTATIONS", "chosen_implementation", "interpreting", "wants_gradient"]

IMPLEMENTATIONS = ("auto", "reference", "triton")

_HAS_TRITON = importlib.util.find_spec("triton") is not None


def interpreting() -> bool:
    """True where Triton's interpreter is asked for (``TRITON_INTERPRET=1``), which runs kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on")


def wants_gradient(*tensors: Tensor | None) -> bool:
    """True where gradients are being recorded for one of the tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def chosen_implementation(
    implementation: str = "auto",
    device: torch.device | str = "cpu",
    *,
    gradient: bool = False,
    operation: str = "adapedit_kernels",
) -> str:
    """Name the implementation that a call with these arguments runs.

    Args:
        implementation: ``"auto"`` (Triton on CUDA devices where it is installed and no gradient is wanted, the
            reference elsewhere), ``"reference"`` or ``"triton"``.
        device: where the operation's tensors lie.
        gradient: whether gradients are wanted, which only the references have.
        operation: used in messages only.

    Returns:
        ``"reference"`` or ``"triton"``.

    Raises:
        AdapEditError: an unknown name.
        ImplementationError: the implementation was named and can't run on that device.
    """
    check_choice(operation, "implementation", implementation, IMPLEMENTATIONS)
    kind = torch.device(device).type
    if implementation == "auto":
        return "triton" if kind == "cuda" and _HAS_TRITON and not gradient else "reference"
    if implementation == "reference":
        return implementation
    if gradient:
        raise ImplementationError(
            f"{operation}: implementation 'triton' has no gradient and one of the tensors requires it; "
            "call it under torch.no_grad() or name 'reference'"
        )
    if not _HAS_TRITON:
        raise ImplementationError(
            f"{operation}: implementation 'triton' needs the package triton, which is not installed; "
            "install it or name 'reference'"
        )
    if kind != "cuda" and not interpreting():
        raise ImplementationError(
            f"{operation}: implementation 'triton' needs CUDA tensors, got {kind}; move them, name 'reference', "
            "or set TRITON_INTERPRET=1 before start to interpret the kernel"
        )
    return implementation
