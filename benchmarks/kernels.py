"""Edited cross-attention on a GPU against fused and eager attention: `python -m benchmarks.kernels`.

At the shapes of Stable Diffusion v1.4, after a gate: every dtype must be right against float64 first, or nothing is
timed. Beside each time the bytes that cannot be avoided and their share of the device's measured copy bandwidth, which
small layers can exceed: their tensors stay in the caches from call to call. Times are of replayed CUDA graphs, and
beside them stands what handing a call over takes of the host. Exits with 2 where there is no GPU.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapedit_kernels import attention_maps, edited_attention, prepare_values
from benchmarks import common

HEADS, TOKENS = 8, 77
ROWS_PER_EDIT = 4  # source and target, without and with their prompt: the last takes maps from the second
LIMITS = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
"""Largest norm of the error over the norm of the float64 result."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One resolution of the UNet: ``side``² pixels, heads ``width`` wide."""

    side: int
    width: int

    @property
    def pixels(self) -> int:
        return self.side**2


LAYERS = (
    Layer(side=64, width=40),
    Layer(side=32, width=80),
    Layer(side=16, width=160),
    Layer(side=8, width=160),
)
ROWS = (4, 8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Tensors of one call: E rows of B are edited, the maps of M are wanted."""

    heads: int
    query: Tensor  # [B, P, H * D]
    key: Tensor  # [B, N, H * D]
    value: Tensor  # [B, N, H * D]
    edits: Mapping[str, Tensor]  # the controls, an entry an edit
    map_row: Tensor  # [M]
    map_sum: Tensor  # [M, P, N] float32

    def prepare(self) -> Tensor:
        """What is made once a prompt or a step, and not timed."""
        names = ("edited_row", "token_map", "own_weight", "spatial_weight")
        return prepare_values(self.value, **{name: self.edits[name] for name in names})

    def arguments(self) -> dict[str, Any]:
        """Of edited attention, by name."""
        rows = {name: self.edits[name] for name in ("edited_row", "source_row", "spatial_map")}
        return {**self.queries(), "value": self.value, "prepared": self.prepare(), **rows}

    def queries(self) -> dict[str, Any]:
        """What attention and maps share."""
        return {"query": self.query, "key": self.key, "heads": self.heads}


def make_case(
    layer: Layer,
    rows: int,
    dtype: torch.dtype,
    device: str,
    *,
    heads: int = HEADS,
    tokens: int = TOKENS,
    seed: int = 0,
) -> Case:
    """Random tensors of one layer; every fourth row is edited, and every second one's map is wanted."""
    generator = torch.Generator().manual_seed(seed)

    def random(length: int, factor: float = 1.0) -> Tensor:
        tensor = factor * torch.randn(rows, length, heads * layer.width, generator=generator)
        return tensor.to(device, dtype)

    edited = torch.arange(ROWS_PER_EDIT - 1, rows, ROWS_PER_EDIT)
    edits = len(edited)
    own = (torch.rand(edits, tokens, generator=generator) < 0.2).float()
    permuted = torch.rand(edits, tokens, tokens, generator=generator).argsort(dim=-1)[:, :, 0]
    controls = {
        "edited_row": edited,
        "source_row": edited - 2,
        "token_map": torch.nn.functional.one_hot(permuted, tokens).transpose(1, 2).float().contiguous(),
        "own_weight": own,
        "spatial_weight": (1 - own) * torch.rand(edits, tokens, generator=generator),
        "spatial_map": torch.rand(edits, layer.pixels, generator=generator),
    }
    return Case(
        heads=heads,
        query=random(layer.pixels),
        key=random(tokens, 2.0),
        value=random(tokens),
        edits={name: control.to(device) for name, control in controls.items()},
        map_row=torch.arange(1, rows, 2, device=device),
        map_sum=torch.zeros(rows // 2, layer.pixels, tokens, device=device),
    )


def _heads_first(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    tensors = (case.query, case.key, case.value)
    query, key, value = (t.unflatten(-1, (case.heads, -1)).transpose(1, 2) for t in tensors)
    return query, key, value


def eager(case: Case) -> Callable[[], Tensor]:
    """Probabilities in memory, in the dtype of the model, edited there: how Prompt-to-Prompt does it.

    What does not depend on the probabilities is prepared here, so that it is not timed.
    """
    query, key, value = _heads_first(case)
    dtype, scale, edits = query.dtype, query.shape[-1] ** -0.5, case.edits
    edited, source, token_map = (edits[name] for name in ("edited_row", "source_row", "token_map"))
    token_map = token_map.to(dtype)[:, None]
    weight = edits["own_weight"][:, None] + edits["spatial_weight"][:, None] * edits["spatial_map"][..., None]
    weight = weight.to(dtype)[:, None]  # [E, 1, P, N]

    def run() -> Tensor:
        probs = ((scale * query) @ key.transpose(-1, -2)).softmax(dim=-1)  # [B, H, P, N]
        remapped = probs[source] @ token_map
        probs[edited] = remapped + weight * (probs[edited] - remapped)
        return (probs @ value).transpose(1, 2).flatten(2)

    return run


def variants(case: Case, implementation: str = "triton") -> dict[str, Callable[[], Any]]:
    """The kernels, and what they are held against; "edited" has the fused attention of all rows in it."""
    query, key, value = _heads_first(case)
    named: dict[str, Any] = {"implementation": implementation, "check_values": False}
    edit, maps = case.arguments(), case.queries() | {"map_row": case.map_row, "map_sum": case.map_sum}
    return {
        "sdpa": lambda: torch.nn.functional.scaled_dot_product_attention(query, key, value),
        "eager": eager(case),
        "edited": lambda: edited_attention(**edit, **named),
        "maps": lambda: attention_maps(**maps, **named),
    }


def least_bytes(case: Case) -> dict[str, int]:
    """Bytes that cannot be avoided: every input read once and every output written once."""

    def size(*tensors: Tensor) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    plain = 2 * size(case.query) + size(case.key, case.value)
    edits, item = case.edits, case.query.element_size()
    rows = torch.cat([edits["edited_row"], edits["source_row"]])
    probs = case.heads * case.query.shape[0] * case.query.shape[1] * case.key.shape[1] * item
    taken = size(case.query[rows], case.key[rows])
    controls = size(*edits.values())
    return {
        "sdpa": plain,
        "eager": plain + taken // 2 + controls + 4 * probs,  # logits and probabilities, each written and read
        "edited": plain + taken + size(case.prepare(), case.query[edits["edited_row"]], edits["spatial_map"]),
        "maps": size(case.query[case.map_row], case.key[case.map_row]) + 2 * size(case.map_sum),
    }


def error(case: Case, implementation: str = "triton") -> dict[str, float]:
    """Norm of the error over the norm of what float64 gives: of the output and of the maps."""
    wide = {name: getattr(case, name).double() for name in ("query", "key", "value", "map_sum")}
    exact = dataclasses.replace(case, **wide)
    wanted = edited_attention(**exact.arguments(), implementation="reference")
    maps = attention_maps(**exact.queries(), map_row=case.map_row, implementation="reference")
    out = edited_attention(**case.arguments(), implementation=implementation)
    found = attention_maps(**case.queries(), map_row=case.map_row, implementation=implementation)
    return {
        "output": float((out.double() - wanted).norm() / wanted.norm()),
        "maps": float((found.double() - maps).norm() / maps.norm()),
    }


ROUNDS, CALLS = 7, 10


def median_seconds(run: Callable[[], Any], calls: int = CALLS, rounds: int = ROUNDS) -> float:
    """Of one call, where the device takes longer than the host that hands it over: `calls` at a time, the median."""
    found = []
    run()
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        run()  # while it runs, those that are timed are queued behind it
        start.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) / calls / 1e3)
    return statistics.median(found)


def captured(run: Callable[[], Any], calls: int = CALLS) -> Callable[[], None]:
    """So many calls in a row as one CUDA graph; returns what replays it. `run` must not wait for the device."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()  # compiled, and with its workspaces, before the capture
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run()
    return graph.replay  # type: ignore[no-any-return]


def host_seconds(run: Callable[[], Any], calls: int = CALLS, rounds: int = ROUNDS) -> float:
    """What handing one call over takes of the host, the device idle before: the median."""
    found = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        found.append((time.perf_counter() - start) / calls)
    torch.cuda.synchronize()
    return statistics.median(found)


SDPA_TIMES, EAGER_TIMES = 2.0, 4.0
"""Wanted: at most so many times fused attention of the same rows, at least so many times faster than eager."""


def copy_bandwidth(device: str, size: int = 1 << 30) -> float:
    """Bytes per second of copying on the device, both directions counted: what shares are given of."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / (milliseconds({"copy": lambda: target.copy_(source)})["copy"] / 1e3)


def milliseconds(runs: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Median time of a call of each on the device, one after the other and round again."""
    replays = {name: captured(run) for name, run in runs.items()}
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, replay in replays.items():
            found[name].append(median_seconds(replay, calls=3, rounds=3) / CALLS * 1e3)
    return {name: statistics.median(times) for name, times in found.items()}


def gate(
    device: str, layers: tuple[Layer, ...] = LAYERS, implementation: str = "triton"
) -> list[dict[str, Any]]:
    """Errors of every dtype at every layer against float64, with whether each is within its limit."""
    found = []
    for dtype, limit in LIMITS.items():
        for layer in layers:
            errors = error(make_case(layer, 4, getattr(torch, dtype), device), implementation)
            right = all(value <= limit for value in errors.values())
            found.append({"dtype": dtype, "side": layer.side, **errors, "limit": limit, "right": right})
    return found


def measure(layer: Layer, rows: int, dtype: torch.dtype, device: str, bandwidth: float) -> dict[str, Any]:
    """Times, bytes and shares of one layer at one number of rows, and whether what is wanted holds."""
    case = make_case(layer, rows, dtype, device)
    moved = least_bytes(case)
    with torch.inference_mode():
        runs = variants(case)
        times = milliseconds(runs)
        host = {name: host_seconds(run) for name, run in runs.items()}
    result: dict[str, Any] = {"side": layer.side, "width": layer.width, "rows": rows}
    for name, value in times.items():
        share = moved[name] / (value / 1e3) / bandwidth
        result[name] = {
            "ms": round(value, 5),
            "host_us": round(host[name] * 1e6, 1),
            "bytes": moved[name],
            "share_of_copy": round(share, 3),
        }
    result["times_sdpa"] = round(times["edited"] / times["sdpa"], 3)
    result["faster_than_eager"] = round(times["eager"] / times["edited"], 2)
    result["as_wanted"] = result["times_sdpa"] <= SDPA_TIMES and result["faster_than_eager"] >= EAGER_TIMES
    return result


def main() -> int:
    parser = common.arguments(__doc__)
    parser.set_defaults(device="cuda", dtype="float16")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.kernels needs a CUDA device and found none", file=sys.stderr)
        return 2
    correctness = gate(options.device)
    if not all(entry["right"] for entry in correctness):
        common.write("kernels", options, {"correctness": correctness})
        print("not timed: an error is over its limit", file=sys.stderr)
        return 1
    bandwidth = copy_bandwidth(options.device)
    dtype = getattr(torch, options.dtype)
    rows = ROWS[:1] if options.quick else ROWS
    times = list[dict[str, Any]]()
    data = {"copy_bytes_per_s": bandwidth, "correctness": correctness, "attention": times}
    for layer in LAYERS:
        times += [measure(layer, count, dtype, options.device, bandwidth) for count in rows]
        common.write("kernels", options, data, whole=False)
    common.write("kernels", options, data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
