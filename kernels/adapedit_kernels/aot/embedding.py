"""Writes compiled kernels as C sources: one file with all binaries, a table of them, and the launches' parameters."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapedit_kernels.aot.compiling import PTX_TARGETS, PTX_VERSION, Binary
from adapedit_kernels.aot.variants import KERNELS, Variant

__all__ = ["report", "write_sources"]

_C_TYPES = {"pointer": "uint64_t", "float": "float", "int": "int32_t"}
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


@dataclass(frozen=True, kw_only=True)
class _Piece:
    offset: int
    size: int


def write_sources(binaries: Sequence[Binary], folder: Path) -> dict[str, Any]:
    """Write the binaries and the C sources into ``folder``; returns what ``manifest.json`` there holds."""
    folder.mkdir(parents=True, exist_ok=True)
    blob = bytearray()
    pieces: dict[bytes, _Piece] = {}

    def place(data: bytes) -> _Piece:
        if data not in pieces:
            blob.extend(b"\0" * (-len(blob) % 64))
            pieces[data] = _Piece(offset=len(blob), size=len(data))
            blob.extend(data)
        return pieces[data]

    nothing = _Piece(offset=0, size=0)
    rows, entries = [], []
    for binary in binaries:
        cubin = place(binary.cubin)
        carried = binary.target in PTX_TARGETS
        ptx = place(_plain(binary.ptx).encode() + b"\0") if carried else nothing
        variant = binary.variant
        numbers = (
            *(binary.target, variant.pixels_from, variant.block, binary.num_warps, binary.shared),
            *(binary.registers, binary.stack, binary.spilled, cubin.offset, cubin.size, ptx.offset, ptx.size),
        )
        rows.append(f'    {{"{variant.name}", "{binary.entry}", {", ".join(map(str, numbers))}}},\n')
        entries.append({**resources(binary), "cubin_bytes": cubin.size, "ptx_bytes": ptx.size})
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


def resources(binary: Binary) -> dict[str, Any]:
    """What a binary is and takes, as plain data."""
    return {
        "name": binary.variant.name,
        "kernel": binary.variant.kernel,
        "pixels_from": binary.variant.pixels_from,
        "target": binary.target,
        "num_warps": binary.num_warps,
        "registers": binary.registers,
        "stack": binary.stack,
        "spilled": binary.spilled,
        "shared": binary.shared,
    }


def report(binaries: Iterable[Binary]) -> str:
    """A Markdown table, a line a variant: registers / shared memory / spilled bytes for each target."""
    lines: dict[tuple[str, int], dict[int, Binary]] = {}
    for binary in binaries:
        lines.setdefault((binary.variant.name, binary.variant.block), {})[binary.target] = binary
    targets = sorted({target for line in lines.values() for target in line})
    text = ["| variant | block | warps | " + " | ".join(f"sm_{target}" for target in targets) + " |"]
    text.append("|---|" + "---:|" * (len(targets) + 2))
    for (name, block), line in lines.items():
        cells = [
            f"{line[target].registers} / {line[target].shared} / {line[target].spilled}"
            if target in line
            else "-"
            for target in targets
        ]
        warps = next(iter(line.values())).num_warps
        text.append(f"| `{name}` | {block} | {warps} | {' | '.join(cells)} |")
    return "\n".join(text)


def _plain(ptx: str) -> str:
    """PTX without comments and indentation, which make up a third of it."""
    lines = (line.partition("//")[0].strip() for line in ptx.splitlines())
    return "\n".join(line for line in lines if line) + "\n"


def _parameters_header(variants: Iterable[Variant]) -> str:
    """A structure per kernel with its arguments by name: a kernel that changes them stops the C code compiling."""
    shapes: dict[str, tuple[tuple[str, str], ...]] = dict.fromkeys(KERNELS, ())
    for variant in variants:
        known = shapes[variant.kernel] or variant.parameters()
        assert known == variant.parameters(), f"variants of {variant.kernel} differ in what they are given"
        shapes[variant.kernel] = known
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
