"""Profiles of a plan: which numbers of rows it takes, and for which it is made fastest."""

from __future__ import annotations

from dataclasses import dataclass

from adapedit_engine.manifest import GraphSpec, TensorSpec
from adapedit_engine.plan_files import Shapes
from adapedit_export.options import ExportError

SMALL_GRAPHS_MOST = 4


@dataclass(frozen=True, kw_only=True)
class Workload:
    """rows: of the UNet calls to be fast at, ascending; a profile each, which also takes what lies below it."""

    name: str
    rows: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.rows or list(self.rows) != sorted(set(self.rows)) or self.rows[0] < 1:
            raise ExportError(
                f"workload {self.name!r} has rows {self.rows}, wanted numbers in ascending order"
            )

    def ranges(self) -> tuple[tuple[int, int, int], ...]:
        """Smallest, best and largest number of rows of each profile; together they take every number up to the last."""
        lows = (1, *(rows + 1 for rows in self.rows[:-1]))
        return tuple((low, rows, rows) for low, rows in zip(lows, self.rows, strict=True))


WORKLOADS = {
    # An edit is four rows, two edits of one source or three guidance rows are six; a first pass is two.
    "latency": Workload(name="latency", rows=(4, 6)),
    "throughput": Workload(name="throughput", rows=(8, 16, 32)),
}


def workload_of(name: str) -> Workload:
    """A named workload. Raises `ExportError` for other names."""
    if name not in WORKLOADS:
        raise ExportError(f"there is no workload {name!r}; use one of: {', '.join(WORKLOADS)}")
    return WORKLOADS[name]


def profiles_of(graph: str, spec: GraphSpec, workload: Workload) -> tuple[dict[str, Shapes], ...]:
    """Shapes of every input in each profile. Graphs other than the UNet run one picture or prompt at a time."""
    ranges = workload.ranges() if graph == "unet" else ((1, 1, SMALL_GRAPHS_MOST),)
    if all(isinstance(side, int) for tensor in spec.inputs for side in tensor.shape):
        ranges = ranges[:1]
    return tuple({tensor.name: _shapes(tensor, sizes) for tensor in spec.inputs} for sizes in ranges)


def _shapes(tensor: TensorSpec, rows: tuple[int, int, int]) -> Shapes:
    def shape(size: int) -> tuple[int, ...]:
        return tuple(side if isinstance(side, int) else size for side in tensor.shape)

    return shape(rows[0]), shape(rows[1]), shape(rows[2])
