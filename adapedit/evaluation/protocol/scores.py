"""Scores of pairs: `run` edits what is not there yet and measures it, batch by batch."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from adapedit.evaluation.protocol.pairs import Pair, PairLine
from adapedit.evaluation.protocol.pictures import PictureStore
from adapedit.evaluation.scores import Editor, settings_digest
from adapedit.metrics.pictures import PictureMetric
from adapedit.request import EditRequest
from adapedit_kernels.errors import AdapEditError


@dataclass(frozen=True, kw_only=True)
class PairScore:
    """One edit of a pair by one variant, measured.

    pair, settings, by: digests of what was edited, how, and by which metrics with which weights it was measured.
    picture: where the edited one is kept, below the folder of the evaluation; None: nowhere.
    """

    name: str
    pair: str
    variant: str
    settings: str
    by: str
    picture: str | None
    figures: dict[str, float]

    @property
    def key(self) -> tuple[str, str, str]:
        return self.pair, self.settings, self.by

    def to_dict(self) -> dict[str, Any]:
        """For a line of JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> PairScore:
        """The reverse. Raises `KeyError` where something is missing."""
        return cls(**{name: fields[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A line, or one of its edits, that was left out, and why."""

    line: int
    name: str
    error: str
    variant: str | None = None


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is done to every pair: edited by `variants` (the first is compared with the others), and measured."""

    variants: Mapping[str, Any]
    metrics: Sequence[PictureMetric]
    steps: int = 50
    guidance_scale: float | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(column for metric in self.metrics for column in metric.columns)

    @property
    def about_metrics(self) -> dict[str, str]:
        return {name: value for metric in self.metrics for name, value in metric.about.items()}

    @property
    def by(self) -> str:
        return hashlib.blake2b(
            json.dumps(self.about_metrics, sort_keys=True).encode(), digest_size=4
        ).hexdigest()

    def settings_digest(self, pipe: Editor, pair: Pair, variant: str) -> str:
        return settings_digest(pipe, pair.settings(self.variants[variant]))


@dataclass(frozen=True, kw_only=True)
class _Edit:
    line: PairLine
    pair: Pair
    variant: str
    settings: str
    place: str | None

    @property
    def key(self) -> tuple[str, str]:
        return self.pair.digest, self.settings


def run(
    pipe: Editor,
    lines: Sequence[PairLine],
    protocol: Protocol,
    known: Sequence[PairScore],
    pictures: PictureStore,
    *,
    batch: int = 4,
    failed: Callable[[Failure], None],
) -> Iterator[list[PairScore]]:
    """Scores that are not known yet, a batch of pairs at a time; an edit that fails is told of and left out.

    What was measured by other metrics, and its pictures kept, is measured again without being edited again.
    """
    if batch < 1:
        raise AdapEditError(f"batch is {batch}, wanted at least 1")
    done = {score.key for score in known}
    kept = {(score.pair, score.settings): score.picture for score in known}
    work: list[list[_Edit]] = []
    for line in lines:
        if line.pair is None:
            continue
        edits = []
        for variant in protocol.variants:
            settings = protocol.settings_digest(pipe, line.pair, variant)
            if (line.pair.digest, settings, protocol.by) not in done:
                done.add((line.pair.digest, settings, protocol.by))
                place = kept.get((line.pair.digest, settings))
                place = place or pictures.place(line.name, line.pair.digest, variant, settings)
                edit = _Edit(line=line, pair=line.pair, variant=variant, settings=settings, place=place)
                edits.append(edit)
        if edits:
            work.append(edits)
    for start in range(0, len(work), batch):
        part = [edit for edits in work[start : start + batch] for edit in edits]
        there = {edit.key: pictures.read(edit.place) if edit.key in kept else None for edit in part}
        missing = [edit for edit in part if there[edit.key] is None]
        requests = [
            edit.pair.request(protocol.variants[edit.variant], protocol.steps, protocol.guidance_scale)
            for edit in missing
        ]
        made = dict(zip((edit.key for edit in missing), _edit(pipe, requests), strict=True))
        scores = []
        for edit in part:
            try:
                pair = there[edit.key] or _kept(made[edit.key], edit, pictures)
                scores.append(_measured(edit, pair, protocol))
            except AdapEditError as error:
                failed(
                    Failure(
                        line=edit.line.number, name=edit.line.name, variant=edit.variant, error=str(error)
                    )
                )
        yield scores


def _edit(pipe: Editor, requests: Sequence[EditRequest]) -> list[Any]:
    """Results, or the error in the place of one.

    A request that is refused is refused before any work is done, so looking for it by halves costs little.
    """
    with warnings.catch_warnings():
        # Each says that a map points at nothing; over a list of pairs the scores say it.
        warnings.simplefilter("ignore")
        try:
            return list(pipe.edit_batch(requests))
        except AdapEditError as error:
            if len(requests) == 1:
                return [error]
    half = len(requests) // 2
    return _edit(pipe, requests[:half]) + _edit(pipe, requests[half:])


def _kept(result: Any, edit: _Edit, pictures: PictureStore) -> tuple[Image.Image, Image.Image]:
    if isinstance(result, AdapEditError):
        raise result
    return pictures.write(edit.place, result.source_image, result.target_image)


def _measured(edit: _Edit, pair: tuple[Image.Image, Image.Image], protocol: Protocol) -> PairScore:
    figures: dict[str, float] = {}
    for metric in protocol.metrics:
        figures |= metric.measure(*pair, edit.pair.source_prompt, edit.pair.target_prompt)
    for name, value in figures.items():
        if not math.isfinite(value):
            raise AdapEditError(f"{name} came out as {value}; try --dtype float32")
    return PairScore(
        name=edit.line.name,
        pair=edit.pair.digest,
        variant=edit.variant,
        settings=edit.settings,
        by=protocol.by,
        picture=edit.place,
        figures={name: round(value, 6) for name, value in figures.items()},
    )
