"""Pairs of prompts: a file with one JSON object a line, the edits of a pair, and the pictures that are kept of them."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from adapedit import AdapEditError, EditRequest
from benchmarks.quality.run import Setup
from benchmarks.quality.store import digest
from benchmarks.quality.studies import Variant

INSTRUCT_PIX2PIX = {"input": "source_prompt", "edit": "instruction", "output": "target_prompt"}
"""Columns of the prompts published with InstructPix2Pix (Brooks et al. 2023), and what they are here."""

Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Pair(BaseModel):
    """Two prompts, and how their edit is made.

    seed:        of the first latents; None: drawn from the source prompt, so that pairs have different ones, and
                 pairs of one source prompt the same.
    name:        for reports and pictures; None: the number of the line.
    instruction: what to do, for methods that are told that instead of what the picture shall show (InstructPix2Pix).
    knobs:       per method, knobs of this pair alone: {"prompt-to-prompt": {"local_blend": ["dog"]}}.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source_prompt: Words
    target_prompt: Words
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    name: Words | None = None
    instruction: Words | None = None
    knobs: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _asks_for_something(self) -> Pair:
        if self.source_prompt == self.target_prompt:
            raise ValueError("both prompts are the same: there is nothing to edit")
        return self

    @property
    def chosen_seed(self) -> int:
        """The seed, given or drawn."""
        return zlib.crc32(self.source_prompt.encode()) if self.seed is None else self.seed

    @property
    def key(self) -> str:
        """Hexadecimal digits of what all methods have in common: the prompts and the seed."""
        return digest([self.source_prompt, self.target_prompt, self.chosen_seed])

    def variant(self, common: Variant) -> Variant:
        """A method for this pair: its own knobs before those that hold for all."""
        instructed = self.instruction and common["name"] == "instruct-pix2pix"
        told = {"instruction": self.instruction} if instructed else {}
        return {**common, **told, **self.knobs.get(common["name"], {})}


Key = tuple[str, str, str]
Pictures = tuple[Image.Image, Image.Image]
"""Source and edited picture."""


@dataclass(frozen=True, kw_only=True)
class PairLine:
    """A line of the file, by its number from 1 on. error: where it is no usable pair."""

    number: int
    name: str
    pair: Pair | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class PairEdit:
    """An edit of a pair by a variant. by: the digest of the metrics that measure it."""

    line: PairLine
    pair: Pair
    label: str
    variant: Variant
    by: str

    @property
    def key(self) -> Key:
        return self.pair.key, digest(self.variant), self.by

    def request(self, setup: Setup) -> EditRequest:
        return setup.request(
            self.pair.source_prompt, self.pair.target_prompt, self.pair.chosen_seed, self.variant
        )


class PictureStore:
    """PNG files below `folder`: a folder for each pair with its source and one file for each edit.

    about: what the evaluation is of; pictures of another model or of other steps have other folders.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder, self._of = folder, digest(about)

    def read(self, one: PairEdit) -> Pictures | None:
        """Source and edited picture, or None where one of them is not there or can't be read."""
        source, edited = (_open(path) for path in self._places(one))
        return None if source is None or edited is None else (source, edited)

    def write(self, one: PairEdit, source: Image.Image, edited: Image.Image) -> Pictures:
        """Keep the pictures of an edit, and return them.

        A source that is there stays: another run may have rounded otherwise, and all edits are compared with one.
        """
        first, place = self._places(one)
        place.parent.mkdir(parents=True, exist_ok=True)
        there = _open(first)
        if there is None:
            _save(source, first)
        _save(edited, place)
        return there or source, edited

    def _places(self, one: PairEdit) -> tuple[Path, Path]:
        pair, settings, _ = one.key
        folder = self.folder / f"{_slug(one.line.name)}-{pair}-{self._of}"
        return folder / "source.png", folder / f"{_slug(one.label)}-{settings}.png"


def read_pairs(path: Path) -> list[PairLine]:
    """The lines of a file that are not empty. Raises `AdapEditError` where the file can't be read, or has none."""
    try:
        texts = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise AdapEditError(
            f"{path} can't be read ({error}); give a file with one JSON object a line"
        ) from error
    lines = [_line(number, text) for number, text in enumerate(texts, start=1) if text.strip()]
    if not lines:
        raise AdapEditError(f"{path} is empty; give a file with one JSON object a line")
    return lines


def _line(number: int, text: bytes) -> PairLine:
    name = f"{number:05d}"
    try:
        try:
            fields = json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise AdapEditError(f"it is no JSON ({error})") from error
        pair = Pair(**_columns(fields))
        return PairLine(number=number, name=pair.name or name, pair=pair)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        return PairLine(number=number, name=name, error=f"{where}: {said}" if where else said)
    except AdapEditError as error:
        return PairLine(number=number, name=name, error=str(error))


def _columns(fields: Any) -> dict[str, Any]:
    """The columns under our names. Those of a published file that say nothing about the edit (its url) are left out."""
    wanted = "wanted source_prompt and target_prompt, or input and output"
    if not isinstance(fields, dict):
        raise AdapEditError(f"it is no JSON object; {wanted}")
    if {"input", "output"} & fields.keys():
        fields = {INSTRUCT_PIX2PIX.get(name, name): value for name, value in fields.items()}
        fields = {name: value for name, value in fields.items() if name in Pair.model_fields}
    missing = [name for name in ("source_prompt", "target_prompt") if name not in fields]
    if missing:
        raise AdapEditError(
            f"it has no {' and no '.join(missing)} (it has {', '.join(fields) or 'nothing'}); {wanted}"
        )
    return fields


def _open(path: Path) -> Image.Image | None:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError):
        return None


def _save(picture: Image.Image, path: Path) -> None:
    part = path.with_name(f".{path.name}.part")
    picture.save(part, "PNG")
    os.replace(part, path)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip(".-")[:60] or "pair"
