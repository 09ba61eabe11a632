"""Checks of what a caller hands to an operation, made on the host before any work is done.

All of them read metadata only (shape, dtype, device, strides), except :func:`check_rows`, which reads values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from adapedit_kernels.errors import AdapEditError

__all__ = [
    "check_choice",
    "check_contiguous",
    "check_dtype",
    "check_last_stride",
    "check_rows",
    "check_same_device",
    "check_shape",
    "tracing",
    "values_readable",
]


def tracing() -> bool:
    """True while a compiler or an exporter follows the code, so that values can't be looked at."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]


def values_readable(tensor: Tensor) -> bool:
    """True where a tensor's values can be read on the host without breaking a trace or a CUDA graph capture."""
    if tracing() or tensor.is_meta or isinstance(tensor, torch._subclasses.FakeTensor):
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def check_shape(
    operation: str, name: str, tensor: Tensor, wanted: Sequence[int | None], letters: str
) -> None:
    """Raise unless ``tensor`` has the wanted shape; ``None`` takes any size, ``letters`` names the axes."""
    shape = tensor.shape
    if len(shape) == len(wanted) and all(w is None or s == w for s, w in zip(shape, wanted, strict=True)):
        return
    sizes = ", ".join("any" if w is None else str(w) for w in wanted)
    raise AdapEditError(
        f"{operation}: {name} has shape {list(shape)}, wanted {letters} = [{sizes}]; reshape or rebuild it"
    )


def check_dtype(operation: str, name: str, tensor: Tensor, wanted: Sequence[torch.dtype]) -> None:
    """Raise unless the tensor's dtype is one of those wanted."""
    if tensor.dtype not in wanted:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in wanted)
        got = str(tensor.dtype).removeprefix("torch.")
        raise AdapEditError(f"{operation}: {name} is {got}, wanted {names}; convert it with .to()")


def check_same_device(operation: str, tensors: Mapping[str, Tensor | None]) -> None:
    """Raise unless all tensors given lie on the device of the first."""
    first: tuple[str, torch.device] | None = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if first is None:
            first = (name, tensor.device)
        elif tensor.device != first[1]:
            raise AdapEditError(
                f"{operation}: {name} is on {tensor.device}, {first[0]} on {first[1]}; move them to one device"
            )


def check_last_stride(operation: str, name: str, tensor: Tensor) -> None:
    """Raise unless neighbours along the last axis are neighbours in memory, as the kernels' loads need."""
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise AdapEditError(
            f"{operation}: {name} has stride {tensor.stride(-1)} along its last axis, the kernel takes 1; "
            "call .contiguous() on it"
        )


def check_choice(operation: str, name: str, value: str, choices: Sequence[str]) -> None:
    """Raise unless ``value`` is one of the words that the option takes."""
    if value not in choices:
        raise AdapEditError(
            f"{operation}: {name} is {value!r}, wanted one of {', '.join(map(repr, choices))}"
        )


def check_rows(operation: str, name: str, rows: Tensor, count: int) -> None:
    """Raise unless all values of an index tensor are in ``[0, count)``.

    Reads values: on a CUDA tensor it waits for the device. Does nothing while tracing or capturing a CUDA graph.
    """
    if rows.numel() == 0 or not values_readable(rows):
        return
    low, high = rows.aminmax()
    if int(low) < 0 or int(high) >= count:
        raise AdapEditError(
            f"{operation}: {name} holds rows {int(low)} to {int(high)}, wanted 0 to {count - 1}; "
            "it indexes the rows of this batch"
        )


def check_contiguous(operation: str, name: str, tensor: Tensor | None) -> None:
    """Raise unless the tensor, where there is one, lies in memory without gaps and in order."""
    if tensor is not None and not tensor.is_contiguous():
        raise AdapEditError(
            f"{operation}: {name} has strides {list(tensor.stride())}, the kernel takes a contiguous tensor; "
            "call .contiguous() on it"
        )
