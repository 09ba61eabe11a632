"""Bundles: a folder with graphs, tokenizer, scheduler, a manifest that every file is held to, and TensorRT plans."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import torch
from safetensors.torch import save
from torch import Tensor

from adapedit_engine.manifest import (
    MANIFEST_FILE,
    BundleError,
    FileSpec,
    GraphSpec,
    Manifest,
    PlanRecord,
    Tensors,
    difference,
)

PLANS_FOLDER = "plans"
DTYPES = {"FLOAT": "float32", "FLOAT16": "float16", "HALF": "float16", "INT64": "int64"}
"""Names of ONNX, ONNX Runtime and TensorRT to the manifest's."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle whose files were found to be what its manifest says."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = True) -> Bundle:
        """Read the manifest and hold every file to it.

        verify: compare SHA-256 sums, a second or two for every gigabyte; False compares sizes alone.
        Raises `BundleError` for a file that is missing, cut short or changed, and for newer formats.
        """
        folder = Path(folder)
        manifest = Manifest.read(folder)
        for name, spec in manifest.files.items():
            check_file(folder, name, spec, verify=verify)
        return cls(folder=folder, manifest=manifest)

    def graph_path(self, graph: str) -> Path:
        """Where the ONNX file of a graph lies. Raises `BundleError` for unknown graphs."""
        return self.folder / self.graph(graph).file

    def graph(self, graph: str) -> GraphSpec:
        """What the manifest says of a graph."""
        if graph not in self.manifest.graphs:
            known = ", ".join(self.manifest.graphs)
            raise BundleError(f"{self.folder} has no graph {graph!r}; it has: {known}")
        return self.manifest.graphs[graph]

    def graph_hash(self, graph: str) -> str:
        """SHA-256 over a graph's structure and weights: a plan made from another one is stale."""
        spec = self.graph(graph)
        files = [self.manifest.files.get(name) for name in (spec.file, f"{spec.file}.data")]
        sums = [file.sha256 for file in files if file is not None]
        return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()


def check_file(folder: Path, name: str, spec: FileSpec, *, verify: bool = True) -> None:
    """Raise `BundleError` unless the file is there with the size and, with `verify`, the SHA-256 of `spec`."""
    path = folder / name
    if not path.is_file():
        raise BundleError(f"{folder}: {name} is missing; copy the bundle again or export the model again")
    size = path.stat().st_size
    if size != spec.bytes:
        what = "cut short" if size < spec.bytes else "changed"
        raise BundleError(
            f"{folder}: {name} was {what} ({size} bytes, the manifest says {spec.bytes}); copy the bundle again"
        )
    if verify and sha256_of(path) != spec.sha256:
        fault = "its SHA-256 is not the manifest's"
        raise BundleError(f"{folder}: {name} was changed: {fault}; copy the bundle again")


def check_graph(
    where: str, spec: GraphSpec, found: Mapping[str, Tensors], *, mend: str = "export the model again"
) -> None:
    """Raise `BundleError` unless a loaded graph has the inputs and outputs that the manifest says.

    found: of "inputs" and "outputs"; dtypes as the library names them, open sides by name or as -1. The exporter may
    tell sides of outputs which are open to TensorRT.
    """
    for kind, tensors in found.items():
        wanted = {tensor.name: (tensor.dtype, tensor.shape) for tensor in getattr(spec, kind)}
        seen = {name: (_dtype(dtype), shape) for name, (dtype, shape) in tensors.items()}
        what = difference(wanted, seen, open_sides=kind == "outputs")
        if what is not None:
            raise BundleError(f"{where} has other {kind} than the manifest says: {what}; {mend}")


def _dtype(name: str) -> str:
    name = name.removeprefix("tensor(").removesuffix(")").upper()
    return DTYPES.get(name, name)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file with the mode that the umask gives; safetensors' own function always gives 0600."""
    # Clones: safetensors refuses tensors that share memory.
    whole = {n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
    path.write_bytes(save(whole))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def describe_files(folder: Path) -> dict[str, FileSpec]:
    """Size and SHA-256 of every file below `folder` but the manifest and the plans."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST_FILE and not name.startswith(f"{PLANS_FOLDER}/"):
            found[name] = FileSpec(bytes=path.stat().st_size, sha256=sha256_of(path))
    return found


def refuse_output(out: str | Path, *, replace: bool = False) -> None:
    """Raise `BundleError` unless a bundle may be written to `out`; replace: an earlier one may be there."""
    out = Path(out)
    if out.exists() and not (replace and (out / MANIFEST_FILE).is_file()):
        hint = "choose another name, or pass --overwrite"
        if replace:
            hint = "it is no bundle: choose another name"
        raise BundleError(f"{out} is there already; {hint}")


@contextmanager
def new_folder(out: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name when the block ends well, and vanishes otherwise.

    replace: an earlier bundle may be in its place. Raises `BundleError` before any work where `out` can't be written.
    """
    out = Path(out)
    refuse_output(out, replace=replace)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part = out.parent / f".{out.name}.{uuid4().hex[:8]}"
        part.mkdir()
    except OSError as error:
        raise BundleError(f"can't write to {out} ({error.strerror}); choose another folder") from error
    try:
        yield part
        old = out.with_name(f".{part.name}.old")
        if out.exists():
            os.replace(out, old)
        os.replace(part, out)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise BundleError(
            f"can't write {out} ({error.strerror or error}); free space or choose another"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_record(folder: Path, record: PlanRecord) -> None:
    """Write the record beside its plan, which has to be there already."""
    (folder / f"{record.key.name}.json").write_text(record.to_json())


def read_records(bundle: Bundle) -> list[PlanRecord]:
    """All plans of a bundle, stale ones too. Raises `BundleError` for a record that can't be read."""
    records = []
    for path in sorted((bundle.folder / PLANS_FOLDER).glob("*.json")):
        record = PlanRecord.read(path)
        if record.key.name != path.stem:
            raise BundleError(f"{path} describes another plan ({record.key.name}); remove it and build again")
        records.append(record)
    return records


def is_stale(bundle: Bundle, record: PlanRecord) -> bool:
    """Whether the plan was built from another graph or other weights than the bundle has now."""
    graph = record.key.graph
    return graph not in bundle.manifest.graphs or record.key.onnx_sha256 != bundle.graph_hash(graph)


def find_plan(
    bundle: Bundle, graph: str, *, family: str, version: str, compute_capability: str, lean: bool = False
) -> PlanRecord:
    """The plan of a graph for this library and GPU. lean: for the lean runtime, from any version.

    Raises `BundleError` that says what there is instead.
    """
    records = [record for record in read_records(bundle) if record.key.graph == graph]
    for record in records:
        key, fits = record.key, record.key.lean if lean else record.key.version == version
        if (key.family, key.compute_capability) != (family, compute_capability):
            continue
        if fits and not is_stale(bundle, record):
            return record
    there = "; ".join(
        f"{record.key.family} {record.key.version} for {record.key.compute_capability}"
        + (" (lean)" if record.key.lean else "")
        + (" (stale: the graph has changed)" if is_stale(bundle, record) else "")
        for record in records
    )
    raise BundleError(
        f"{bundle.folder} has no plan of {graph} for {family} {version} and compute capability "
        f"{compute_capability} (there: {there or 'none'}); build it: adapedit build {bundle.folder}"
        + (" --lean" if lean else "")
    )


def read_plan(bundle: Bundle, record: PlanRecord) -> bytes:
    """The plan's bytes. Raises `BundleError` where they are missing, cut short or changed."""
    folder = bundle.folder / PLANS_FOLDER
    check_file(folder, record.file_name, record.file)
    return (folder / record.file_name).read_bytes()
