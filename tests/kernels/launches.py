"""What Triton would compile for a launch on sm_90, without a GPU: launches are caught on their way to the driver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

TARGET = GPUTarget("cuda", 90, 32)


class Launch(NamedTuple):
    source: ASTSource
    options: dict[str, Any]

    def compile(self) -> Any:
        """For the target, and as the launch asks for it."""
        return triton.compile(self.source, target=TARGET, options=self.options)


@contextmanager
def caught() -> Iterator[list[Launch]]:
    """The launches in the block, in order, of tensors that may lie anywhere; none of them runs."""
    backend, found = make_backend(TARGET), list[Launch]()

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        bound, specialization, options = bind(*args, **named)
        options, *parts = kernel._pack_args(backend, named, bound, specialization, options)
        found.append(Launch(ASTSource(kernel, *parts), options.__dict__))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", run)
        yield found
