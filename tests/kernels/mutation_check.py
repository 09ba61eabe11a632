"""Break one sign, one index and one mask of every kernel: the checks of ``interpreted/`` must notice each.

    python -m tests.kernels.mutation_check             all of them, some minutes
    python -m tests.kernels.mutation_check guided      those whose name holds a word

Exits with 1 where a broken kernel passes. Nothing on disk is changed: a broken copy takes the module's place.
"""

from __future__ import annotations

import importlib.util
import io
import os
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton

import pytest
import torch
import triton  # noqa: F401 - here, so that each broken kernel need not load it

import adapedit_kernels

FOLDER = Path(__file__).parent / "interpreted"


class Mutation(NamedTuple):
    operation: str
    kernel: str
    kind: str
    right: str
    wrong: str
    place: int = 0  # which of the occurrences in the file

    @property
    def name(self) -> str:
        return f"{self.operation}, {self.kernel}, {self.kind}"


def _of(operation: str, kernel: str, *changes: tuple[str, str, str, int]) -> list[Mutation]:
    return [Mutation(operation, kernel, *change) for change in changes]


MUTATIONS = [
    *_of(
        "edited_attention",
        "edited_attention_kernel",
        ("sign", "else powers * place_weight[:, None]", "else -powers * place_weight[:, None]", 0),
        ("index", "taken = tl.where(half == 0, source, row)", "taken = row", 0),
        ("mask", "mask=row[:, None] < rows, other=0.0", "mask=row[:, None] >= 0, other=0.0", 0),
        ("sign of the rescaling", "tl.exp2(peak - higher)", "tl.exp2(higher - peak)", 0),
        ("rescaling of the second piece", "acc_tail *= rescale[:, None]", "acc_tail *= 1.0", 0),
        ("sign of the logarithm", "(peak + tl.log2(total))", "(peak - tl.log2(total))", 0),
        ("index of the values", "half * value_half_stride + edit", "half * value_half_stride + row", 0),
        ("index of the parts", "values + part * part_stride", "values", 0),
        (
            "index of S",
            "spatial_map + edit * spatial_map_stride",
            "spatial_map + row * spatial_map_stride",
            0,
        ),
        ("rows that are their own source", "if row == source:", "if row == -1:", 0),
        (
            "mask of the logits",
            'tl.where(token[None, :] < tokens, logits, float("-inf"))',
            "logits",
            0,
        ),
        (
            "mask of channels that fill no tile",
            "mask=(row[:, None] < rows) & (channel[None, :] < WIDTH), other=0.0",
            "mask=row[:, None] < rows, other=0.0",
            0,
        ),
        (
            "mask of the result",
            "inside = (row[:, None] < rows) & (channel[None, :] < WIDTH)",
            "inside = channel[None, :] < WIDTH",
            0,
        ),
    ),
    *_of(
        "attention_maps",
        "map_kernel",
        ("sign", "tl.exp2(logits - peak[:, None])", "tl.exp2(logits + peak[:, None])", 0),
        ("index", "key + row * key_batch_stride", "key + place * key_batch_stride", 0),
        ("mask", "mask=inside & (token[None, :] < tokens)", "mask=inside", 0),
        ("sum of the last tokens", "total += tl.sum(powers_more, axis=1)", "total += 0.0", 0),
    ),
    *_of(
        "attention_maps",
        "map_sum_kernel",
        ("sign", "total += tl.load(partial", "total -= tl.load(partial", 0),
        ("index", "map_sum + place * map_batch_stride", "map_sum", 0),
        ("mask", "inside = value < values", "inside = value >= 0", 0),
    ),
    *_of(
        "word_relation",
        "embed_kernel",
        ("sign", "tile - middle[None, :]", "tile + middle[None, :]", 0),
        ("index", "column + pixel[None, :] * map_pixel_stride", "column + pixel[None, :]", 1),
        ("index of a switch", "tl.load(relative + row)", "tl.load(relative)", 0),
        ("index of the temperature", "temperature + row", "temperature", 0),
        (
            "switch of centring",
            "centred = tl.load(centre + row) != 0",
            "centred = tl.load(centre + row) == 0",
            0,
        ),
        ("mask", "weight >= limit[:, None]", "weight >= 0 * limit[:, None]", 0),
        (
            "mask of the features",
            "visible = (pixel[:, None] < pixels) & (channel[None, :] < channels)",
            "visible = channel[None, :] < channels",
            1,
        ),
    ),
    *_of(
        "word_relation",
        "relate_kernel",
        ("sign", "1.0 - tl.exp(cosine - 1.0)", "1.0 - tl.exp(cosine + 1.0)", 0),
        ("index of the formula", "tl.load(released + row)", "tl.load(released)", 0),
        ("index", "word_of_token + row * tokens + this", "word_of_token + row * tokens", 0),
        ("mask", "(words == word) & (word >= 0)", "words == word", 0),
    ),
    *_of(
        "word_relation",
        "finish_kernel",
        ("sign", "early + _HELD_BASE", "_HELD_BASE + early", 0),
        ("index", "word_share + row * tokens + token", "word_share + token", 0),
        ("mask", "wordless = real & (word < 0) & (is_key == 0)", "wordless = real & (is_key == 0)", 0),
    ),
    *_of(
        "spatial_similarity",
        "mean_kernel",
        ("sign", "total += tl.sum", "total -= tl.sum", 0),
        ("index", "mean + row * channels + channel, total", "mean + channel, total", 0),
        (
            "mask",
            "inside = (pixel[:, None] < pixels) & (channel[None, :] < channels)",
            "inside = channel[None, :] < channels",
            0,
        ),
    ),
    *_of(
        "spatial_similarity",
        "similarity_kernel",
        ("sign", "tile - tl.where", "tile + tl.where", 0),
        ("index", "lambda_spatial + row", "lambda_spatial", 0),
        ("index of the switch", "centre + row", "centre", 0),
        (
            "mask",
            "mean + row * channels + channel, mask=channel < channels, other=0.0",
            "mean + row * channels + channel",
            0,
        ),
        ("mask of the result", "factor * cosine, mask=pixel < pixels", "factor * cosine", 0),
    ),
    *_of(
        "guided_step",
        "guided_step_kernel",
        ("sign", "base + mask * (result - base)", "base - mask * (result - base)", 0),
        ("index", "blend_mask + track * pixels", "blend_mask + source * pixels", 0),
        (
            "mask",
            "tl.store(out + track * size + place, result.to(out.dtype.element_ty), mask=inside)",
            "tl.store(out + track * size + place, result.to(out.dtype.element_ty))",
            0,
        ),
        ("sign of the noise", "eps += weight", "eps -= weight", 0),
        ("index of the weights", "output_weight + track", "output_weight", 0),
    ),
    *_of(
        "group_norm",
        "norm_kernel",
        ("sign", "+ count * (means - mean)", "- count * (means - mean)", 0),
        ("index", "weight + channel", "weight + channel % width", 0),
        (
            "index of the moments",
            "tl.program_id(2) * groups + tl.program_id(1)",
            "tl.program_id(2) * groups",
            1,
        ),
        ("mask", "mask=there, other=0.0", "other=0.0", 0),
        ("mask of the distances", "tl.where(inside, tile - mean, 0.0)", "tile - mean", 0),
        (
            "mask of the result",
            "result.to(out.dtype.element_ty), mask=inside",
            "result.to(out.dtype.element_ty)",
            0,
        ),
    ),
]


def broken(mutation: Mutation, source: str) -> str:
    """The kernel's file with one thing wrong."""
    pieces = source.split(mutation.right)
    if len(pieces) < mutation.place + 2:
        raise SystemExit(f"{mutation.name}: {mutation.right!r} is not in the kernel any more; mend the list")
    before, after = pieces[: mutation.place + 1], pieces[mutation.place + 1 :]
    return mutation.right.join(before) + mutation.wrong + mutation.right.join(after)


def load(operation: str, path: Path) -> None:
    """Let the operation use the kernels in this file; its launch is imported by the first call."""
    name = f"adapedit_kernels.{operation}.triton"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def first_failure(operation: str) -> str:
    """The first check that fails, or nothing."""
    path = FOLDER / f"check_{operation}.py"
    words = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-W", "ignore", "--tb=no", "-rfE"]
    output = io.StringIO()
    with redirect_stdout(output):
        code = pytest.main([*words, str(path)])
    if code == pytest.ExitCode.OK:
        return ""
    found = [line for line in output.getvalue().splitlines() if line.startswith(("FAILED", "ERROR"))]
    if code != pytest.ExitCode.TESTS_FAILED or not found:
        raise SystemExit(f"the checks did not run:\n{output.getvalue()[-3000:]}")
    return found[0].partition("::")[2].partition(" - ")[0]


def noticed_by(mutation: Mutation, path: Path) -> str:
    """What notices the broken kernel, or nothing. In a process of its own: a stray write may end it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            load(mutation.operation, path)
            os.write(writer, first_failure(mutation.operation).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        check = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        return f"the process died of signal {-status}"
    if status > 0:
        raise SystemExit(f"{mutation.name}: the checks did not run")
    return check


def main(words: list[str]) -> int:
    chosen = [m for m in MUTATIONS if all(word in m.name for word in words)]
    if not chosen:
        raise SystemExit(
            f"no mutation's name holds {' and '.join(words)}; the names are those that a run prints"
        )
    torch.set_num_threads(1)
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        for number, mutation in enumerate(chosen):
            kernel = Path(adapedit_kernels.__file__).parent / mutation.operation / "triton.py"
            path = Path(folder) / f"broken_{number}.py"
            path.write_text(broken(mutation, kernel.read_text(encoding="utf-8")), encoding="utf-8")
            start = time.perf_counter()
            check = noticed_by(mutation, path)
            if not check:
                survivors.append(mutation.name)
            seconds = time.perf_counter() - start
            print(
                f"{'noticed' if check else 'SURVIVED':8} {mutation.name}: {check} ({seconds:.0f} s)",
                flush=True,
            )
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} broken kernels were noticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
