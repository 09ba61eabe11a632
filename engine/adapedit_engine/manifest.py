"""What the JSON files of a bundle say, as plain data within bounds: the manifest, and records of TensorRT plans.

Everything of a bundle that others may have written is checked here, before anything is built from it.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import from_json

from adapedit_engine.models.controls import SELF_NAMES
from adapedit_engine.models.layers import SIZES, ModelSpecs, Width
from adapedit_engine.models.text import HIDDEN, POOLED, id_names
from adapedit_kernels.errors import AdapEditError

FORMAT: Literal[4] = 4
MANIFEST_FILE = "manifest.json"
GRAPHS = ("text_encoder", "text_projection", "unet", "vae_decoder", "vae_encoder")
TOKENIZERS = ("tokenizer", "tokenizer_2")
ROWS, EDITS, MAPS = "rows", "edits", "maps"
"""The sides that are known at run time: rows of a call, those that are edited, and those whose maps are wanted."""

MAX_BYTES = 1 << 24
WHOLE = ("value_error", "missing", "unexpected_keyword_argument", "json_invalid")
"""Kinds of pydantic's errors that are about more than the value that they name."""
STRICT = ConfigDict(strict=True, extra="forbid")

Name = Annotated[str, Field(min_length=1, max_length=1000)]
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=1 << 50)]
Shape = Annotated[tuple[Width | Literal["rows", "edits", "maps"], ...], Field(min_length=1, max_length=8)]
Sizes = Annotated[tuple[Width, ...], Field(min_length=1, max_length=8)]
Shapes = tuple[Sizes, Sizes, Sizes]
"""Smallest, best and largest."""
TensorKind = tuple[str, tuple[int | str, ...]]
"""Dtype and sides."""
Tensors = Mapping[str, TensorKind]


class BundleError(AdapEditError):
    """A bundle that is not there, incomplete, changed, or of a format that this version does not read."""


@contextmanager
def reading(
    path: Path, mend: str = "export the model again", kind: type[AdapEditError] = BundleError
) -> Iterator[None]:
    """A block in which a file is read: what a library raises there is one error of a kind, which names the file."""
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = "".join(f"{part}: " for part in [".".join(map(str, first["loc"]))] if part)
        got = f", got {reprlib.repr(first['input'])}" if first["type"] not in WHOLE else ""
        wanted = " ".join(first["msg"].removeprefix("Value error, ").split())
        raise kind(f"{path}: {where}{wanted}{got}; {mend}") from error
    except AdapEditError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or "no reason was given"
        raise kind(f"{path} can't be read ({type(error).__name__}: {reason}); {mend}") from error


def _relative(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise ValueError(f"names {name!r}, outside the bundle")
    return name


def _consistent(specs: ModelSpecs) -> ModelSpecs:
    if specs.conditioning and set(specs.conditioning) != {POOLED, SIZES}:
        raise ValueError(
            f"conditioning has {', '.join(specs.conditioning)}, wanted {POOLED} and {SIZES}, or none"
        )
    if specs.map_level not in specs.levels:
        raise ValueError(f"map_level is {specs.map_level}, cross-attention is at the levels {specs.levels}")
    return specs


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TensorSpec:
    """A graph's input or output. A side is a number, or the name of one that is known at run time."""

    name: Name
    dtype: Literal["float32", "float16", "int64"]
    shape: Shape


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GraphSpec:
    """One ONNX file of the bundle with its tensors in the order of the file."""

    file: Name
    inputs: Annotated[tuple[TensorSpec, ...], Field(max_length=100)]
    outputs: Annotated[tuple[TensorSpec, ...], Field(max_length=100)]
    opset: Annotated[int, Field(ge=1, le=100)]
    nodes: Annotated[int, Field(ge=0, le=1 << 24)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FileSpec:
    """Size in bytes and SHA-256 of a file of the bundle."""

    bytes: Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VaeSpec:
    """latents = encoded pixels * scaling_factor; `factor` pixels to one latent cell, per side."""

    factor: Annotated[int, Field(ge=1, le=256)]
    scaling_factor: Annotated[float, Field(gt=0, le=1e6)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Parity:
    """Difference from PyTorch in float32: largest, mean, and as norm of the error over norm of the value."""

    largest: Number
    mean: Number
    ratio: Number


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Manifest:
    """The contract of a bundle.

    model:       name that the checkpoint was loaded by.
    specs:       of the UNet, as the loop needs them.
    tokens:      N.
    vocabulary:  tokens that the text encoders know, every one of them.
    text_encoders: how many, each with a tokenizer of its own.
    height, width: of the latents.
    rows:        rows of a UNet call where the batch is fixed, else None.
    graphs:      by name, those of `GRAPHS`.
    files:       every file but the manifest and the plans, which are described by files of their own.
    versions:    of what the bundle was made with.
    parity:      what ONNX Runtime gave after the export, by stage (a graph on random inputs, or "edit") and output.
    """

    format: Literal[4] = FORMAT
    model: Name
    precision: Literal["float32", "float16", "mixed", "int8", "fp8"]
    specs: Annotated[ModelSpecs, AfterValidator(_consistent)]
    tokens: Annotated[int, Field(ge=2, le=4096)]
    vocabulary: Annotated[int, Field(ge=1, le=1 << 20)]
    height: Annotated[int, Field(ge=1, le=4096)]
    width: Annotated[int, Field(ge=1, le=4096)]
    rows: Annotated[int, Field(ge=1, le=1024)] | None
    vae: VaeSpec
    scheduler: Annotated[str, Field(pattern="^[A-Za-z][A-Za-z0-9]{0,99}$")]
    graphs: dict[Name, GraphSpec]
    files: Annotated[dict[Annotated[Name, AfterValidator(_relative)], FileSpec], Field(max_length=10_000)]
    versions: Annotated[dict[Name, Name], Field(max_length=100)]
    parity: dict[Name, dict[Name, Parity]] = field(default_factory=dict)
    text_encoders: Annotated[int, Field(ge=1, le=2)] = 1

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of the maps."""
        return self.specs.map_size(self.height, self.width)

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """Their folders, in the order of the text encoders."""
        return TOKENIZERS[: self.text_encoders]

    @model_validator(mode="after")
    def _check_graphs(self) -> Manifest:
        for name in (*GRAPHS, *self.graphs):
            if name not in self.graphs or name not in GRAPHS:
                raise ValueError(f"has {', '.join(self.graphs) or 'no graphs'}, wanted {', '.join(GRAPHS)}")
        for name, kinds in self._calls().items():
            graph = self.graphs[name]
            if graph.file != f"{name}.onnx":
                raise ValueError(f"graphs.{name}.file is {graph.file!r}, wanted '{name}.onnx'")
            if graph.file not in self.files:
                raise ValueError(f"files does not list {graph.file}")
            for kind, wanted in kinds.items():
                found = {t.name: (t.dtype, t.shape) for t in getattr(graph, kind)}
                what = difference(wanted, found)
                if what is not None:
                    raise ValueError(f"graphs.{name}.{kind}: {what}")
        return self

    def _calls(self) -> dict[str, dict[str, Tensors]]:
        """What "inputs" and "outputs" each graph has to have, for all else that the manifest says."""
        specs, tokens = self.specs, self.tokens
        rows, edits, maps = (self.rows or side for side in (ROWS, EDITS, MAPS))
        number = "float16" if self.precision == "float16" else "float32"
        size, map_pixels = (self.height, self.width), self.map_size[0] * self.map_size[1]
        latents: TensorKind = (number, (ROWS, specs.out_channels, *size))
        pixels: TensorKind = (number, (ROWS, 3, *(side * self.vae.factor for side in size)))
        hidden: TensorKind = (number, (ROWS, tokens, specs.text_channels))
        pooled: Tensors = {n: (number, (ROWS, *s)) for n, s in specs.conditioning.items() if n == POOLED}
        # Keys and values of all layers, of a width that the two graphs which have them agree upon.
        width = [t.shape[-1] for t in self.graphs["text_projection"].outputs][:1]
        projected = (tokens, *width)
        inputs: Tensors = {
            "sample": (number, (rows, specs.in_channels, *size)),
            "timestep": ("float32", (rows,)),
            **{name: ("float32", (rows, *sides)) for name, sides in specs.conditioning.items()},
            "projected_text": (number, (rows, *projected)),
            "edited_row": ("int64", (edits,)),
            "source_row": ("int64", (edits,)),
            "token_map": ("float32", (edits, tokens, tokens)),
            "own_weight": ("float32", (edits, tokens)),
            "spatial_weight": ("float32", (edits, tokens)),
            "spatial_map": ("float32", (edits, map_pixels)),
            "map_row": ("int64", (maps,)),
            **dict.fromkeys(SELF_NAMES, ("int64", (len(specs.self_layers), rows))),
        }
        outputs: Tensors = {
            "noise_pred": (number, (rows, specs.out_channels, *size)),
            "cross_attention_maps": ("float32", (maps, map_pixels, tokens)),
            "visual_features": (number, (maps, map_pixels, specs.feature_channels)),
        }
        return {
            "unet": {"inputs": inputs, "outputs": outputs},
            "text_encoder": {
                "inputs": dict.fromkeys(id_names(self.text_encoders), ("int64", (ROWS, tokens))),
                "outputs": {HIDDEN: hidden, **pooled},
            },
            "text_projection": {
                "inputs": {"encoder_hidden_states": hidden},
                "outputs": {"projected_text": (number, (ROWS, *projected))},
            },
            "vae_decoder": {"inputs": {"latents": latents}, "outputs": {"pixels": pixels}},
            "vae_encoder": {"inputs": {"pixels": pixels}, "outputs": {"latents": latents}},
        }

    def to_json(self) -> str:
        return _written(TypeAdapter(Manifest), self)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of the bundle in `folder`. Raises `BundleError` in one line."""
        path = folder / MANIFEST_FILE
        if not path.is_file():
            what = "is no bundle (no manifest.json)" if folder.is_dir() else "does not exist"
            raise BundleError(f"{folder} {what}; make one with: adapedit export MODEL --out {folder}")
        with reading(path):
            data = read_bytes(path)
            values: Any = from_json(data)
            found = values.get("format") if isinstance(values, dict) else None
            if found != FORMAT:
                newer = isinstance(found, int) and found > FORMAT
                mend = "upgrade adapedit" if newer else "export the model again"
                raise BundleError(
                    f"{folder} has bundle format {found!r}, this version reads {FORMAT}: {mend}"
                )
            return TypeAdapter(Manifest).validate_json(data)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PlanKey:
    """What a plan depends on.

    onnx_sha256:        of the graph with its weights.
    family, version:    of TensorRT: "tensorrt" or "tensorrt-rtx", and its version.
    compute_capability: of the GPUs that it is for, such as "8.9".
    workload:           name of the set of profiles.
    profiles:           per profile, input name -> smallest, best and largest shape.
    refit:              whether its weights can be exchanged.
    lean:               whether the lean runtime takes it, of its version or a later one.
    """

    graph: Literal[GRAPHS]  # type: ignore[valid-type]
    onnx_sha256: Name
    family: Name
    version: Name
    compute_capability: Annotated[str, Field(pattern=r"^\d{1,3}\.\d$")]
    workload: Name
    profiles: Annotated[tuple[dict[Name, Shapes], ...], Field(min_length=1, max_length=16)]
    refit: bool = False
    lean: bool = False

    @property
    def name(self) -> str:
        """File name without ending: the graph, and a digest of everything above."""
        text = json.dumps(asdict(self), sort_keys=True, allow_nan=False)
        return f"{self.graph}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def profile_of(self, shapes: dict[str, tuple[int, ...]]) -> int | None:
        """The first profile that takes inputs of these shapes; None: none does."""
        for index, profile in enumerate(self.profiles):
            if all(_inside(shapes[name], low, high) for name, (low, _, high) in profile.items()):
                return index
        return None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PlanRecord:
    """A plan on disk. layers, activation_bytes (of the largest profile) and build_seconds are for reports."""

    key: PlanKey
    file: FileSpec
    layers: Count
    activation_bytes: Count
    build_seconds: Number

    @property
    def file_name(self) -> str:
        return f"{self.key.name}.plan"

    def to_json(self) -> str:
        return _written(TypeAdapter(PlanRecord), self)

    @classmethod
    def read(cls, path: Path) -> PlanRecord:
        """The record at `path`. Raises `BundleError` in one line."""
        with reading(path, "remove it and build again"):
            return TypeAdapter(PlanRecord).validate_json(read_bytes(path))


def _inside(shape: tuple[int, ...], low: tuple[int, ...], high: tuple[int, ...]) -> bool:
    return len(shape) == len(low) and all(a <= s <= b for s, a, b in zip(shape, low, high, strict=True))


def difference(wanted: Tensors, found: Tensors, *, open_sides: bool = False) -> str | None:
    """Where tensors are others than those wanted, in words; None: nowhere.

    A side of -1 stands for one that is known at run time, and with `open_sides` for any other, too.
    """
    for name in (*wanted, *found):
        if name not in found or name not in wanted:
            what = "is missing" if name in wanted else "is one too many"
            return f"{name} {what}, wanted {', '.join(wanted)}"
    for name, (dtype, sides) in wanted.items():
        got, shape = found[name]
        fits = len(shape) == len(sides) and all(
            side == there or (there == -1 and (isinstance(side, str) or open_sides))
            for side, there in zip(sides, shape, strict=True)
        )
        if got != dtype or not fits:
            return f"{name} is {got} {tuple(shape)}, wanted {dtype} {tuple(sides)}"
    return None


def read_bytes(path: Path) -> bytes:
    """A JSON file's bytes. Raises `BundleError` for one that is too large to be what it should."""
    if path.stat().st_size > MAX_BYTES:
        raise BundleError(f"{path} is larger than {MAX_BYTES >> 20} MB: it is none of a bundle")
    return path.read_bytes()


def _written(kind: TypeAdapter[Any], value: Any) -> str:
    return json.dumps(kind.dump_python(value, mode="json"), indent=1, allow_nan=False) + "\n"
