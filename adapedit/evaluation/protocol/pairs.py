"""The list of pairs: a file with one JSON object a line, of which a broken one is named and the rest is used."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from adapedit.methods import make_settings, one_line
from adapedit.request import EditRequest
from adapedit_kernels.errors import AdapEditError

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
        for method, knobs in self.knobs.items():
            make_settings(method, **knobs)
        return self

    @property
    def chosen_seed(self) -> int:
        """The seed, given or drawn."""
        return zlib.crc32(self.source_prompt.encode()) if self.seed is None else self.seed

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of what all methods have in common: the prompts and the seed."""
        fields = [self.source_prompt, self.target_prompt, self.chosen_seed]
        return hashlib.blake2b(json.dumps(fields).encode(), digest_size=8).hexdigest()

    def settings(self, common: Any) -> Any:
        """A method's settings for this pair: its own knobs before those that hold for all."""
        given = {name: getattr(common, name) for name in common.model_fields_set if name != "name"}
        if self.instruction is not None and "instruction" in type(common).model_fields:
            given["instruction"] = self.instruction
        return make_settings(common.name, **{**given, **self.knobs.get(common.name, {})})

    def request(self, common: Any, steps: int, guidance_scale: float | None) -> EditRequest:
        """What this pair is to a method."""
        return EditRequest.make(
            source_prompt=self.source_prompt,
            target_prompt=self.target_prompt,
            seed=self.chosen_seed,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            method=self.settings(common),
        )


@dataclass(frozen=True, kw_only=True)
class PairLine:
    """A line of the file, by its number from 1 on. name: no other line has it; error: where it is no usable pair."""

    number: int
    name: str
    pair: Pair | None = None
    error: str | None = None


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
    taken: set[str] = set()
    named = []
    for line in lines:
        name, count = line.name, 1
        while name in taken:
            count += 1
            name = f"{line.name}-{count}"
        taken.add(name)
        named.append(replace(line, name=name))
    return named


def checked(lines: Iterable[PairLine], check: Callable[[Pair], None]) -> list[PairLine]:
    """The same lines; where `check` raises an `AdapEditError` the pair is taken out, and the error says why."""
    found = []
    for line in lines:
        try:
            if line.pair is not None:
                check(line.pair)
            found.append(line)
        except AdapEditError as error:
            found.append(replace(line, pair=None, error=str(error)))
    return found


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
        return PairLine(number=number, name=name, error=_reason(error))
    except AdapEditError as error:
        return PairLine(number=number, name=name, error=str(error))


def _columns(fields: Any) -> dict[str, Any]:
    """The columns under our names. Those of a published file that say nothing about the edit (its url) are left out."""
    wanted = "wanted source_prompt and target_prompt, or input and output"
    if not isinstance(fields, dict):
        raise AdapEditError(f"it is no JSON object; {wanted}")
    published = {"input", "output"} & fields.keys()
    if published and {"source_prompt", "target_prompt"} & fields.keys():
        raise AdapEditError(f"it has the columns of two kinds of file; {wanted}")
    if published:
        fields = {INSTRUCT_PIX2PIX.get(name, name): value for name, value in fields.items()}
        fields = {name: value for name, value in fields.items() if name in Pair.model_fields}
    missing = [name for name in ("source_prompt", "target_prompt") if name not in fields]
    if missing:
        raise AdapEditError(
            f"it has no {' and no '.join(missing)} (it has {', '.join(fields) or 'nothing'}); {wanted}"
        )
    return fields


def _reason(error: ValidationError) -> str:
    """One line; of an error in the whole pair without the pair itself."""
    first = error.errors()[0]
    if not first["loc"]:
        return first["msg"].removeprefix("Value error, ")
    return one_line(error)
