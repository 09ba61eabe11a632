"""Edited cross-attention on a GPU against fused and eager attention: `python -m benchmarks.kernels`.

At the shapes of Stable Diffusion v1.4, after a gate: every dtype must be right against float64 first, or nothing is
timed. Beside each time the bytes that cannot be avoided and their share of the device's measured copy bandwidth, which
small layers can exceed: their tensors stay in the caches from call to call. Times are of replayed CUDA graphs, and
beside them stands what handing a call over takes of the host.
`--checks` measures, on the CPU, what the checks before a launch cost. Exits with 2 where there is no GPU.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from adapedit_kernels.edited_attention import check_arguments
from benchmarks import common
from benchmarks.attention_cases import LAYERS, LIMITS, ROWS, Layer, error, least_bytes, make_case, variants
from benchmarks.on_device import CALLS, ROUNDS, captured, host_seconds, median_seconds

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


def price_of_checks(repeats: int = 500) -> dict[str, float]:
    """Processor time in microseconds of the checks of one call: metadata alone, and the values of the rows too."""
    case = make_case(Layer(side=8, width=40), 4, torch.float32, "cpu")
    controls = tuple(case.controls.values())

    def microseconds(run: Callable[[], Any]) -> float:
        times = []
        for _ in range(7):
            start = time.process_time()
            for _ in range(repeats):
                run()
            times.append((time.process_time() - start) / repeats * 1e6)
        return round(min(times), 2)

    def checked(maps: bool, values: bool) -> None:
        check_arguments(
            case.query,
            case.key,
            case.value,
            controls,
            case.map_sum if maps else None,
            check_values=values,
            chosen="triton",
        )

    return {
        "metadata_us": microseconds(lambda: checked(False, False)),
        "metadata_and_map_sum_us": microseconds(lambda: checked(True, False)),
        "metadata_and_values_us": microseconds(lambda: checked(False, True)),
    }


def main() -> int:
    parser = common.arguments(__doc__)
    parser.add_argument(
        "--checks", action="store_true", help="what the checks before a launch cost; on the CPU"
    )
    parser.set_defaults(device="cuda", dtype="float16")
    options = parser.parse_args()
    if options.checks:
        options.device = "cpu"
        torch.set_num_threads(1)
        common.write("kernel-checks", options, {"checks": price_of_checks(50 if options.quick else 500)})
        return 0
    if not torch.cuda.is_available():
        print(
            "benchmarks.kernels needs a CUDA device and found none; --checks runs on the CPU", file=sys.stderr
        )
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
