"""The manifest: what a bundle holds and promises, as plain data that is read and written as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from adapedit_engine.models.layers import ModelSpecs
from adapedit_kernels.errors import AdapEditError

FORMAT = 1
MANIFEST_FILE = "manifest.json"


class BundleError(AdapEditError):
    """A bundle that is not there, incomplete, changed, or of a format that this version does not read."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """A graph's input or output. A side is a number, or the name of a size that is known at run time."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class GraphSpec:
    """One ONNX file of the bundle with its tensors in the order of the file."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    nodes: int


@dataclass(frozen=True, kw_only=True)
class FileSpec:
    """Size in bytes and SHA-256 of a file of the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class VaeSpec:
    """latents = encoded pixels * scaling_factor; `factor` pixels to one latent cell, per side."""

    factor: int
    scaling_factor: float


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Difference from PyTorch in float32: largest, mean, and as norm of the error over norm of the value."""

    largest: float
    mean: float
    ratio: float


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contract of a bundle.

    model:       name that the checkpoint was loaded by.
    precision:   "float32", "float16" or "mixed".
    specs:       of the UNet, as the loop needs them.
    tokens:      N.
    height, width: of the latents.
    rows:        rows of a UNet call where the batch is fixed, else None.
    graphs:      by name: unet, text_projection, text_encoder, vae_decoder, vae_encoder.
    files:       every file but the manifest and the plans, which are described by files of their own.
    versions:    of what the bundle was made with.
    parity:      what ONNX Runtime gave after the export, by stage (a graph on random inputs, or "edit") and output.
    """

    format: int = FORMAT
    model: str
    precision: str
    specs: ModelSpecs
    tokens: int
    height: int
    width: int
    rows: int | None
    vae: VaeSpec
    scheduler: str
    graphs: dict[str, GraphSpec]
    files: dict[str, FileSpec]
    versions: dict[str, str]
    parity: dict[str, dict[str, Parity]] = field(default_factory=dict)

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of the maps."""
        return self.specs.map_size(self.height, self.width)

    def to_json(self) -> str:
        return json.dumps(_ADAPTER.dump_python(self, mode="json"), indent=1) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of the bundle in `folder`. Raises `BundleError` in one line."""
        path = folder / MANIFEST_FILE
        if not path.is_file():
            what = "is no bundle (no manifest.json)" if folder.is_dir() else "does not exist"
            raise BundleError(f"{folder} {what}; make one with: adapedit export MODEL --out {folder}")
        try:
            values: Any = json.loads(path.read_bytes())
        except ValueError as error:
            raise BundleError(f"{path} can't be read ({error}); export the model again") from error
        found = values.get("format") if isinstance(values, dict) else None
        if isinstance(found, int) and found > FORMAT:
            raise BundleError(
                f"{folder} has bundle format {found}, this version reads up to {FORMAT}: upgrade adapedit"
            )
        if found != FORMAT:
            raise BundleError(f"{path} has format {found!r}, wanted {FORMAT}: export the model again")
        try:
            return _ADAPTER.validate_python(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise BundleError(f"{path}: {where}: {first['msg']}; export the model again") from error


_ADAPTER = TypeAdapter(Manifest)
