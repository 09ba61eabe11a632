"""Edited cross-attention on a GPU against fused and eager attention: `python -m benchmarks.kernels`.

At the shapes of Stable Diffusion v1.4, after a gate: every dtype must be right against float64 first, or nothing is
timed. Beside each time the bytes that cannot be avoided and their share of the device's measured copy bandwidth, which
small layers can exceed: their tensors stay in the caches from call to call. Times are of replayed CUDA graphs, and
beside them stands what handing a call over takes of the host. Exits with 2 where there is no GPU.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapedit_kernels import edited_attention, edited_attention_with_maps
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
    """Tensors of one call; heads lie beside one another in memory, as a UNet's projections leave them."""

    query: Tensor  # [B, H, P, D]
    key: Tensor  # [B, H, N, D]
    value: Tensor  # [B, H, N, D]
    controls: Mapping[str, Tensor]
    map_sum: Tensor  # [B, P, N] float32

    @property
    def edited_rows(self) -> Tensor:
        source = self.controls["source_row"]
        return (source != torch.arange(len(source), device=source.device)).nonzero()[:, 0]


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
    """Random tensors of one layer; every fourth row is edited, or all rows but the first where there are fewer."""
    generator = torch.Generator().manual_seed(seed)

    def heads_first(length: int, factor: float = 1.0) -> Tensor:
        tensor = factor * torch.randn(rows, length, heads, layer.width, generator=generator)
        return tensor.to(device, dtype).transpose(1, 2)

    row = torch.arange(rows)
    last = row % ROWS_PER_EDIT == ROWS_PER_EDIT - 1
    own = (torch.rand(rows, tokens, generator=generator) < 0.2).float()
    permuted = torch.rand(rows, tokens, tokens, generator=generator).argsort(dim=-1)[:, :, 0]
    controls = {
        "source_row": torch.where(last, row - 2, row),
        "token_map": torch.nn.functional.one_hot(permuted, tokens).transpose(1, 2).float().contiguous(),
        "own_weight": own,
        "spatial_weight": (1 - own) * torch.rand(rows, tokens, generator=generator),
        "spatial_map": torch.rand(rows, layer.pixels, generator=generator),
    }
    return Case(
        query=heads_first(layer.pixels),
        key=heads_first(tokens, 2.0),
        value=heads_first(tokens),
        controls={name: control.to(device) for name, control in controls.items()},
        map_sum=torch.zeros(rows, layer.pixels, tokens, device=device),
    )


def eager(case: Case) -> Callable[[], Tensor]:
    """Probabilities in memory, in the dtype of the model, edited there: how Prompt-to-Prompt does it.

    What does not depend on the probabilities is prepared here, so that it is not timed.
    """
    dtype, scale = case.query.dtype, case.query.shape[-1] ** -0.5
    edited = case.edited_rows
    chosen = {name: control[edited] for name, control in case.controls.items()}
    source, token_map = chosen["source_row"], chosen["token_map"].to(dtype)[:, None]
    weight = (
        chosen["own_weight"][:, None] + chosen["spatial_weight"][:, None] * chosen["spatial_map"][..., None]
    )
    weight = weight.to(dtype)[:, None]  # [edited rows, 1, P, N]

    def run() -> Tensor:
        probs = ((scale * case.query) @ case.key.transpose(-1, -2)).softmax(dim=-1)  # [B, H, P, N]
        remapped = probs[source] @ token_map
        probs[edited] = remapped + weight * (probs[edited] - remapped)
        return probs @ case.value

    return run


def variants(case: Case, implementation: str = "triton") -> dict[str, Callable[[], Any]]:
    """The kernel with and without maps, and what it is held against."""
    query, key, value = case.query, case.key, case.value
    named: dict[str, Any] = {"implementation": implementation, "check_values": False}
    edit: dict[str, Any] = named | dict(case.controls)
    return {
        "sdpa": lambda: torch.nn.functional.scaled_dot_product_attention(query, key, value),
        "eager": eager(case),
        "plain": lambda: edited_attention(query, key, value, edited=False, **named),
        "edited": lambda: edited_attention(query, key, value, **edit),
        "edited with maps": lambda: edited_attention(query, key, value, map_sum=case.map_sum, **edit),
    }


def least_bytes(case: Case) -> dict[str, int]:
    """Bytes that cannot be avoided: every input read once and every output written once."""

    def size(*tensors: Tensor) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    plain = 2 * size(case.query) + size(case.key, case.value)
    rows = case.edited_rows
    probs = case.query.shape[:3].numel() * case.key.shape[2] * case.query.element_size()
    source = case.controls["source_row"][rows]
    edit = size(case.query[source], case.key[source], *(control[rows] for control in case.controls.values()))
    return {
        "sdpa": plain,
        "eager": plain + edit + 4 * probs,  # logits and probabilities, each written and read
        "plain": plain,
        "edited": plain + edit,
        "edited with maps": plain + edit + 2 * size(case.map_sum),
    }


def error(case: Case, implementation: str = "triton") -> dict[str, float]:
    """Norm of the error over the norm of what float64 gives: of the output and of the maps."""
    wide = [tensor.double() for tensor in (case.query, case.key, case.value)]
    controls = {n: c.double() if c.is_floating_point() else c for n, c in case.controls.items()}
    wanted, maps = edited_attention_with_maps(*wide, **controls, implementation="reference")
    map_sum = torch.zeros_like(case.map_sum)
    out = edited_attention(
        case.query, case.key, case.value, **case.controls, map_sum=map_sum, implementation=implementation
    )
    assert maps is not None
    return {
        "output": float((out.double() - wanted).norm() / wanted.norm()),
        "maps": float((map_sum.double() - maps).norm() / maps.norm()),
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


SDPA_TIMES, EAGER_TIMES, MAPS_TIMES = 1.25, 4.0, 1.05
"""Wanted: at most so many times fused attention, at least so many times faster than eager, the maps on top."""


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
    result["maps_on_top"] = round(times["edited with maps"] / times["edited"], 3)
    result["as_wanted"] = (
        result["times_sdpa"] <= SDPA_TIMES
        and result["faster_than_eager"] >= EAGER_TIMES
        and result["maps_on_top"] <= MAPS_TIMES
    )
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
