"""Workloads: the numbers of rows that TensorRT shall be fast at, as profiles of a graph's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adapedit_engine.manifest import EDITS, MAPS, ROWS, GraphSpec, Shapes, TensorSpec
from adapedit_kernels.errors import AdapEditError

MAX_SMALL_ROWS = 4
"""Of every graph but the UNet, which run one picture or prompt at a time."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """rows: of the UNet calls to be fast at, ascending; a profile each, which also takes what lies below it."""

    name: str
    rows: tuple[int, ...]

    def ranges(self) -> tuple[tuple[int, int, int], ...]:
        """Smallest, best and largest number of rows of each profile; together they take every number up to the last."""
        lows = (1, *(rows + 1 for rows in self.rows[:-1]))
        return tuple((low, rows, rows) for low, rows in zip(lows, self.rows, strict=True))


WORKLOADS = {
    # An edit is four rows, two edits of one source or three guidance rows are six; a first pass is two.
    "latency": Workload(name="latency", rows=(4, 6)),
    "throughput": Workload(name="throughput", rows=(8, 16, 32)),
}
EVERY = Workload(name="every", rows=tuple(rows for one in WORKLOADS.values() for rows in one.rows))
"""For libraries that keep their plans themselves, and have one for all."""


def workload_of(name: str) -> Workload:
    """A named workload. Raises `AdapEditError` for other names."""
    if name not in WORKLOADS:
        raise AdapEditError(f"there is no workload {name!r}; use one of: {', '.join(WORKLOADS)}")
    return WORKLOADS[name]


def profiles_of(graph: str, spec: GraphSpec, workload: Workload) -> tuple[dict[str, Shapes], ...]:
    """Shapes of every input in each profile: smallest, best and largest."""
    ranges = workload.ranges() if graph == "unet" else ((1, 1, MAX_SMALL_ROWS),)
    if all(isinstance(side, int) for tensor in spec.inputs for side in tensor.shape):
        ranges = ranges[:1]

    def shape(tensor: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(side if isinstance(side, int) else sizes[side] for side in tensor.shape)

    def shapes(low: int, best: int, high: int) -> dict[str, Shapes]:
        # Of four rows, a source's and a target's with guidance, one is edited and two are looked at.
        least, usual = (
            {ROWS: low, EDITS: 1, MAPS: 1},
            {ROWS: best, EDITS: max(1, best // 4), MAPS: max(1, best // 2)},
        )
        most = dict.fromkeys((ROWS, EDITS, MAPS), high)
        return {t.name: (shape(t, least), shape(t, usual), shape(t, most)) for t in spec.inputs}

    return tuple(shapes(*one) for one in ranges)
