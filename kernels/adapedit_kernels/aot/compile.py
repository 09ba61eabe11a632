"""Compiles a variant for a target without a GPU, and reads from the binary what it takes of a device."""

from __future__ import annotations

import itertools
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from adapedit_kernels.aot.variants import KERNELS, Variant
from adapedit_kernels.errors import AdapEditError

PTX_VERSION = 87  # the first that knows every target, so that drivers since CUDA 12.8 can read it
# PTX of sm_90 and later is Triton's for that one architecture (the "a" in sm_90a), so no other device takes it.
PTX_TARGETS = (80, 89)

_REGISTERS = (None, 255, 232)  # limits that are named in turn while a kernel spills; None: none is
_SCRATCH_POINTERS = 2  # that Triton adds to every kernel: for scratch memory and for its profiler


@dataclass(frozen=True, kw_only=True)
class Binary:
    """A variant compiled for a target; sizes in bytes, registers per thread."""

    variant: Variant
    target: int
    entry: str  # name of the kernel in the binary
    cubin: bytes
    ptx: str
    num_warps: int
    registers: int
    spilled: int  # of the memory of a thread that registers spill into
    shared: int  # of a program, without the kilobyte that the driver keeps from sm_90 on


def compile_all(variants: Iterable[Variant], targets: Iterable[int], jobs: int = 1) -> Iterator[Binary]:
    """Compile each variant for each target, in that order, with ``jobs`` processes."""
    work = [(variant, target) for variant in variants for target in targets]
    if jobs <= 1:
        yield from itertools.starmap(compile_one, work)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("fork")) as pool:
        yield from pool.map(compile_one, *zip(*work, strict=True))


def compile_one(variant: Variant, target: int) -> Binary:
    """Compile ``variant`` for compute capability ``target`` (80 is 8.0).

    ptxas spills a register or two where that lets one program more run on a multiprocessor. Such a kernel is compiled
    again with all 255 registers named as its limit, which ends that bargain, or with fewer, which lets it look harder.

    Raises:
        AdapEditError: Triton is being interpreted, or the kernel wants memory that the C library does not give.
    """
    for limit in _REGISTERS:
        binary = _compile(variant, target, {} if limit is None else {"maxnreg": limit})
        if not binary.spilled:
            break
    return binary


def _compile(variant: Variant, target: int, options: dict[str, int]) -> Binary:
    kernel = KERNELS[variant.kernel]
    if not hasattr(kernel, "cache_key"):
        raise AdapEditError(
            "compiling ahead of time: TRITON_INTERPRET is set, which has no compiler; unset it"
        )
    units = variant.units().items()
    aligned = {(kernel.arg_names.index(name),): [["tt.divisibility", unit]] for name, unit in units}
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True  # names of files of the building machine
        compiled = triton.compile(
            ASTSource(kernel, variant.signature(), constexprs=dict(variant.constants), attrs=aligned),
            target=GPUTarget("cuda", target, 32),
            options={
                "num_warps": variant.num_warps,
                "num_stages": 1,
                "ptx_version": PTX_VERSION,
                "enable_fp_fusion": True,
                **options,
            },
        )
    facts, ptx = compiled.metadata, compiled.asm["ptx"]
    given = len(variant.parameters()) + _SCRATCH_POINTERS
    taken = len(re.findall(rf"\.param \S+ .*{facts.name}_param_\d+", ptx.partition(")")[0]))
    if taken != given or facts.global_scratch_size or facts.profile_scratch_size:
        raise AdapEditError(
            f"{variant.name} for sm_{target}: takes {taken} parameters and {facts.global_scratch_size} bytes of "
            f"scratch, the C library gives {given} and none; mend its launch"
        )
    registers, spilled = _resources(compiled.asm["cubin"])
    return Binary(
        variant=variant,
        target=target,
        entry=facts.name,
        cubin=compiled.asm["cubin"],
        ptx=ptx,
        num_warps=facts.num_warps,
        registers=registers,
        spilled=spilled,
        shared=facts.shared,
    )


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of memory that stand in for them, of a thread: as cuobjdump reads them from the binary."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    if found is None:
        raise AdapEditError(f"cuobjdump named no resources; it said: {text.strip()[-200:]!r}")
    registers, stack, local = map(int, found.groups())
    return registers, stack + local
