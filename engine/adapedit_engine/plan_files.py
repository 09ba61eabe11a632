"""TensorRT plans of a bundle: what each was built from and for, so that a stale one is never run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from adapedit_engine.bundle import PLANS_FOLDER, Bundle, BundleError, FileSpec, check_file

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class PlanKey:
    """What a plan depends on.

    onnx_sha256:        of the graph with its weights.
    family, version:    of TensorRT: "tensorrt" or "tensorrt-rtx", and its version.
    compute_capability: of the GPUs that it is for, such as "8.9".
    workload:           name of the set of profiles.
    profiles:           per profile, input name -> smallest, best and largest shape.
    refit:              whether its weights can be exchanged.
    """

    graph: str
    onnx_sha256: str
    family: str
    version: str
    compute_capability: str
    workload: str
    profiles: tuple[dict[str, Shapes], ...]
    refit: bool = False

    @property
    def name(self) -> str:
        """File name without ending: the graph, and a digest of everything above."""
        text = json.dumps(asdict(self), sort_keys=True)
        return f"{self.graph}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def profile_of(self, shapes: dict[str, tuple[int, ...]]) -> int | None:
        """The first profile that takes inputs of these shapes; None: none does."""
        for index, profile in enumerate(self.profiles):
            if all(_inside(shapes[name], low, high) for name, (low, _, high) in profile.items()):
                return index
        return None


@dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """A plan on disk. layers, activation_bytes (of the largest profile) and build_seconds are for reports."""

    key: PlanKey
    file: FileSpec
    layers: int
    activation_bytes: int
    build_seconds: float

    @property
    def file_name(self) -> str:
        return f"{self.key.name}.plan"


_ADAPTER = TypeAdapter(PlanRecord)


def write_record(folder: Path, record: PlanRecord) -> None:
    """Write the record beside its plan, which has to be there already."""
    values = _ADAPTER.dump_python(record, mode="json")
    (folder / f"{record.key.name}.json").write_text(json.dumps(values, indent=1) + "\n")


def read_records(bundle: Bundle) -> list[PlanRecord]:
    """All plans of a bundle, stale ones too. Raises `BundleError` for a record that can't be read."""
    records = []
    for path in sorted((bundle.folder / PLANS_FOLDER).glob("*.json")):
        try:
            values: Any = json.loads(path.read_bytes())
            record = _ADAPTER.validate_python(values)
        except (ValueError, ValidationError) as error:
            raise BundleError(
                f"{path} can't be read ({type(error).__name__}); remove it and build again"
            ) from error
        if record.key.name != path.stem:
            raise BundleError(f"{path} describes another plan ({record.key.name}); remove it and build again")
        records.append(record)
    return records


def is_stale(bundle: Bundle, record: PlanRecord) -> bool:
    """Whether the plan was built from another graph or other weights than the bundle has now."""
    graph = record.key.graph
    return graph not in bundle.manifest.graphs or record.key.onnx_sha256 != bundle.graph_hash(graph)


def find_plan(
    bundle: Bundle,
    graph: str,
    *,
    family: str,
    version: str,
    compute_capability: str,
    workload: str | None = None,
) -> PlanRecord:
    """The plan of a graph for this library and GPU. Raises `BundleError` that says what there is instead."""
    records = [record for record in read_records(bundle) if record.key.graph == graph]
    fitting = [
        record
        for record in records
        if not is_stale(bundle, record)
        and (record.key.family, record.key.version) == (family, version)
        and record.key.compute_capability == compute_capability
        and (workload is None or record.key.workload == workload)
    ]
    if fitting:
        return fitting[0]
    there = "; ".join(
        f"{record.key.family} {record.key.version} for {record.key.compute_capability}"
        + (" (stale: the graph has changed)" if is_stale(bundle, record) else "")
        for record in records
    )
    raise BundleError(
        f"{bundle.folder} has no plan of {graph} for {family} {version} and compute capability "
        f"{compute_capability} (there: {there or 'none'}); build it: adapedit build {bundle.folder}"
    )


def read_plan(bundle: Bundle, record: PlanRecord) -> bytes:
    """The plan's bytes. Raises `BundleError` where they are missing, cut short or changed."""
    folder = bundle.folder / PLANS_FOLDER
    check_file(folder, record.file_name, record.file)
    return (folder / record.file_name).read_bytes()


def _inside(shape: tuple[int, ...], low: tuple[int, ...], high: tuple[int, ...]) -> bool:
    return len(shape) == len(low) and all(a <= s <= b for s, a, b in zip(shape, low, high, strict=True))
