"""Which implementation of an operation runs, the checks of what it is given, and the precision of the references.

All checks are made on the host before any work is done. They read metadata only (shape, dtype, device, strides), except
:func:`check_rows`, which reads values.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from adapedit_kernels.errors import AdapEditError, ImplementationError

IMPLEMENTATIONS = ("auto", "reference", "triton")
_HALF_AND_SINGLE = (torch.float32, torch.float16, torch.bfloat16)
FLOATING = {"triton": _HALF_AND_SINGLE, "reference": (*_HALF_AND_SINGLE, torch.float64)}
"""Floating dtypes that an implementation takes."""

HEAD_WIDTHS = range(8, 257)
"""Of attention, for the kernels."""

BOOL, INTEGER = (torch.bool,), (torch.int64,)

Expected = Mapping[str, tuple[Tensor | None, str, Sequence[torch.dtype]]]
"""Name -> (tensor, axes, dtypes). Axes are letters: ``"B N"``; the first tensor with a letter sets its size."""

_HAS_TRITON = importlib.util.find_spec("triton") is not None


def interpreting() -> bool:
    """True where Triton's interpreter is asked for (``TRITON_INTERPRET=1``), which runs kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on")


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


def implementation_for(operation: str, implementation: str, first: Tensor, *others: Tensor | None) -> str:
    """What a call with these tensors, of which gradients may be wanted, runs; see :func:`chosen_implementation`."""
    recorded = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (first, *others))
    return chosen_implementation(implementation, first.device, gradient=recorded, operation=operation)


def operator(
    operation: str, schema: str, reference: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """The operation in ``torch.ops.adapedit_kernels``, one node to compilers and exporters; arguments were checked.

    It launches Triton on CUDA tensors and where Triton is interpreted, and elsewhere computes the reference, so that a
    graph traced on the CPU can be run there. fake: gives results without values.
    """

    def compute(first: Tensor, *others: Any) -> Any:
        if first.is_cuda or interpreting():
            return launch(operation, first, *others)
        return reference(first, *others)

    name, changed = f"adapedit_kernels::{operation}", re.findall(r"Tensor\(\w!\) (\w+)", schema)
    made = torch.library.custom_op(name, compute, mutates_args=changed, schema=schema)
    made.register_fake(fake)
    return made


def launch(operation: str, first: Tensor, *others: Any) -> Any:
    """What the operation's Triton launcher returns for these arguments, which were checked.

    Triton launches on the current device, which need not be the one on which the tensors lie.
    """
    launcher = import_module(f"adapedit_kernels.{operation}.triton").launch
    with torch.cuda.device_of(first):
        return launcher(first, *others)


def values_readable(tensor: Tensor) -> bool:
    """True where a tensor's values can be read on the host without breaking a trace or a CUDA graph capture."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return False
    if tensor.is_meta or isinstance(tensor, torch._subclasses.FakeTensor):
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def check_tensors(operation: str, expected: Expected) -> None:
    """Raise unless all tensors given have the axes and dtypes that are wanted and lie on one device."""
    sizes: dict[str, int] = {"1": 1, "2": 2}
    first: tuple[str, torch.device] | None = None
    for name, (tensor, axes, dtypes) in expected.items():
        if tensor is None:
            continue
        letters, shape = axes.split(), tensor.shape
        wanted = [sizes.get(letter) for letter in letters]
        if len(shape) != len(wanted) or any(
            w is not None and s != w for s, w in zip(shape, wanted, strict=True)
        ):
            numbers = ", ".join("any" if w is None else str(w) for w in wanted)
            raise AdapEditError(
                f"{operation}: {name} has shape {list(shape)}, wanted [{', '.join(letters)}] = [{numbers}]; "
                "reshape or rebuild it"
            )
        sizes.update(zip(letters, shape, strict=True))
        if tensor.dtype not in dtypes:
            got, *names = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, *dtypes))
            raise AdapEditError(
                f"{operation}: {name} is {got}, wanted {' or '.join(names)}; convert it with .to()"
            )
        first = first or (name, tensor.device)
        if tensor.device != first[1]:
            raise AdapEditError(
                f"{operation}: {name} is on {tensor.device}, {first[0]} on {first[1]}; move them to one device"
            )


def check_attention(
    operation: str, expected: Expected, heads: int, chosen: str, *, check_values: bool
) -> None:
    """Raise unless the tensors of attention, the number of heads and, with `check_values`, all lists of rows fit."""
    check_tensors(operation, expected)
    query = expected["query"][0]
    assert query is not None
    batch, _, channels = query.shape
    if heads < 1 or channels % heads:
        raise AdapEditError(f"{operation}: heads is {heads}, wanted a divisor of the {channels} channels")
    width = channels // heads
    if chosen == "triton":
        if width not in HEAD_WIDTHS:
            raise AdapEditError(
                f"{operation}: heads are {width} wide, the kernel takes {HEAD_WIDTHS.start} to "
                f"{HEAD_WIDTHS.stop - 1}; name implementation='reference'"
            )
        check_layout(operation, expected, last=tuple(expected))
    for name, (tensor, *_) in expected.items():
        if check_values and tensor is not None and name.endswith("_row"):
            check_rows(operation, name, tensor, batch)


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


def check_layout(
    operation: str, expected: Expected, *, last: Sequence[str] = (), free: Sequence[str] = ()
) -> None:
    """Raise unless every tensor given lies in memory as the kernel takes it: without gaps and in order.

    last: names of those of which only neighbours along the last axis have to be neighbours. free: of those that may lie
    anyhow.
    """
    for name, (tensor, *_) in expected.items():
        if tensor is None or name in free:
            continue
        if name not in last and not tensor.is_contiguous():
            raise AdapEditError(
                f"{operation}: {name} has strides {list(tensor.stride())}, the kernel takes a contiguous tensor; "
                "call .contiguous() on it"
            )
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise AdapEditError(
                f"{operation}: {name} has stride {tensor.stride(-1)} along its last axis, the kernel takes 1; "
                "call .contiguous() on it"
            )


def wide_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 where one of the tensors is float64, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def to_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert, leaving no trace in an exported graph where there is nothing to convert."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)
