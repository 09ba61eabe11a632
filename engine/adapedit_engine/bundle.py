"""Bundles: a folder with graphs, tokenizer, scheduler and a manifest that every file is held to."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from adapedit_engine.manifest import (
    FORMAT,
    MANIFEST_FILE,
    BundleError,
    FileSpec,
    GraphSpec,
    Manifest,
    TensorSpec,
    VaeSpec,
)

PLANS_FOLDER = "plans"
GRAPHS = ("text_encoder", "text_projection", "unet", "vae_decoder", "vae_encoder")


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
        missing = [name for name in GRAPHS if name not in manifest.graphs]
        if missing:
            raise BundleError(f"{folder} has no graph {missing[0]!r}: export the model again")
        for name, graph in manifest.graphs.items():
            if graph.file not in manifest.files:
                raise BundleError(f"{folder}: the manifest does not list {graph.file} of graph {name!r}")
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
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise BundleError(f"{folder}: the manifest names {name!r}, outside the bundle: don't use this bundle")
    if not path.is_file():
        raise BundleError(f"{folder}: {name} is missing; copy the bundle again or export the model again")
    size = path.stat().st_size
    if size != spec.bytes:
        what = "cut short" if size < spec.bytes else "changed"
        raise BundleError(
            f"{folder}: {name} was {what} ({size} bytes, the manifest says {spec.bytes}); copy the bundle again"
        )
    if verify and sha256_of(path) != spec.sha256:
        raise BundleError(
            f"{folder}: {name} was changed: its SHA-256 is not the manifest's; copy the bundle again"
        )


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
        hint = (
            "it is no bundle: choose another name" if replace else "choose another name, or pass --overwrite"
        )
        raise BundleError(f"{out} is there already; {hint}")


@contextmanager
def new_folder(out: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name when the block ends well, and vanishes otherwise.

    replace: allow an earlier bundle in its place, and nothing else. Raises `BundleError` before any work
    where `out` can't be written.
    """
    out = Path(out)
    refuse_output(out, replace=replace)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise BundleError(f"can't write to {out} ({error.strerror}); choose another folder") from error
    try:
        yield part
        part.chmod(0o755)
        if out.exists():
            old = out.with_name(f".{part.name}.old")
            os.replace(out, old)
            os.replace(part, out)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(part, out)
    except OSError as error:
        raise BundleError(
            f"can't write {out} ({error.strerror or error}); free space or choose another"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


__all__ = [
    "FORMAT",
    "GRAPHS",
    "PLANS_FOLDER",
    "Bundle",
    "BundleError",
    "FileSpec",
    "GraphSpec",
    "Manifest",
    "TensorSpec",
    "VaeSpec",
    "check_file",
    "describe_files",
    "new_folder",
    "refuse_output",
    "sha256_of",
]
