"""Writes compiled kernels as C sources: one file with all binaries, a table of them, and the launches' parameters."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from adapedit_kernels.aot.compile import PTX_TARGETS, PTX_VERSION, Binary
from adapedit_kernels.aot.variants import Variant

_C_TYPES = {"pointer": "uint64_t", "float": "float", "int": "int32_t"}
_RESOURCES = "target num_warps registers spilled shared"
_NOTE = "/* Written by `python -m adapedit_kernels.aot`; do not edit. */\n"

_ASSEMBLY = """\
    .section .rodata.adapedit_kernels, "a"
    .balign 64
    .globl adapedit_kernels_blob
    .hidden adapedit_kernels_blob
    .type adapedit_kernels_blob, %object
adapedit_kernels_blob:
    .incbin "adapedit_kernels.bin"
    .byte 0
    .size adapedit_kernels_blob, . - adapedit_kernels_blob
    .section .note.GNU-stack, "", %progbits
"""


def write_sources(binaries: Sequence[Binary], folder: Path) -> dict[str, Any]:
    """Write the binaries and the C sources into ``folder``; returns what ``manifest.json`` there holds."""
    folder.mkdir(parents=True, exist_ok=True)
    blob = bytearray()
    pieces: dict[bytes, tuple[int, int]] = {}

    def place(data: bytes) -> tuple[int, int]:
        if data not in pieces:
            blob.extend(b"\0" * (-len(blob) % 64))
            pieces[data] = (len(blob), len(data))
            blob.extend(data)
        return pieces[data]

    rows, entries = [], []
    for binary in binaries:
        cubin = place(binary.cubin)
        carried = binary.target in PTX_TARGETS
        ptx = place(_plain(binary.ptx).encode() + b"\0") if carried else (0, 0)
        variant = binary.variant
        numbers = (
            *(binary.target, variant.pixels_from, variant.block, binary.num_warps, binary.shared),
            *(binary.registers, binary.spilled, *cubin, *ptx),
        )
        rows.append(f'    {{"{variant.name}", "{binary.entry}", {", ".join(map(str, numbers))}}},\n')
        entry = {"name": variant.name, "kernel": variant.kernel, "pixels_from": variant.pixels_from}
        entry |= {name: getattr(binary, name) for name in _RESOURCES.split()}
        entries.append({**entry, "cubin_bytes": cubin[1], "ptx_bytes": ptx[1]})
    (folder / "adapedit_kernels.bin").write_bytes(blob)
    (folder / "adapedit_kernels_blob.S").write_text(_ASSEMBLY)
    targets = sorted({binary.target for binary in binaries})
    (folder / "adapedit_kernels_table.c").write_text(
        f'{_NOTE}#include "internal.h"\n\n'
        f"const int adapedit_kernels_target_list[] = {{{', '.join(map(str, targets))}}};\n"
        f"const size_t adapedit_kernels_target_total = {len(targets)};\n\n"
        f"const struct adapedit_binary adapedit_kernels_table[] = {{\n{''.join(rows)}}};\n"
        f"const size_t adapedit_kernels_table_size = {len(rows)};\n"
    )
    (folder / "adapedit_kernels_parameters.h").write_text(
        _parameters_header(binary.variant for binary in binaries)
    )
    manifest = {"ptx_version": PTX_VERSION, "targets": targets, "binaries": entries}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def _plain(ptx: str) -> str:
    """PTX without comments and indentation, which make up a third of it."""
    lines = (line.partition("//")[0].strip() for line in ptx.splitlines())
    return "\n".join(line for line in lines if line) + "\n"


def _parameters_header(variants: Iterable[Variant]) -> str:
    """A structure per kernel with its arguments by name: a kernel that changes them stops the C code compiling."""
    shapes: dict[str, tuple[tuple[str, str], ...]] = {}
    for variant in variants:
        known = shapes.setdefault(variant.kernel, variant.parameters())
        assert known == variant.parameters(), f"variants of {variant.kernel} differ in what they are given"
    text = [_NOTE, "#ifndef ADAPEDIT_KERNELS_PARAMETERS_H\n#define ADAPEDIT_KERNELS_PARAMETERS_H\n"]
    text.append("#include <stdint.h>\n\n")
    for kernel, shape in shapes.items():
        fields = "".join(f"    {_C_TYPES[kind]} {name};\n" for name, kind in shape)
        text.append(f"struct {kernel}_parameters {{\n{fields}}};\n")
        pointers = ", ".join(f"&(p)->{name}" for name, _ in shape)
        text.append(
            f"#define {kernel}_pointers(p) {{{pointers}, &adapedit_no_scratch, &adapedit_no_scratch}}\n\n"
        )
    text.append("#endif\n")
    return "".join(text)
