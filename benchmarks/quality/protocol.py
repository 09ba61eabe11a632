"""The paper's own protocol: LPIPS, CLIP score and CLIP directional similarity over a list of pairs of prompts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from adapedit import AdapEditError, EditRequest
from adapedit.sheets import Cell, sheet
from benchmarks.quality.metrics import PictureMetric
from benchmarks.quality.page import write_report
from benchmarks.quality.pairs import Key, PairEdit, PairLine, Pictures, PictureStore
from benchmarks.quality.report import COLUMNS, group
from benchmarks.quality.run import Progress, Setup, edit, extremes
from benchmarks.quality.store import ScoreStore, digest
from benchmarks.quality.studies import Variant

NAME = "pairs"
TABLE_1 = {
    "says": "The paper's own figures (its Table 1): Stable Diffusion v1.4, 50 steps, 700 pairs chosen at random from "
    "those that people wrote for InstructPix2Pix. Not measured here. It names neither its CLIP and LPIPS networks, nor "
    "its pairs, nor its seeds.",
    "means": {
        "prompt-to-prompt": {"lpips": 0.33, "clip_score": 26.05, "clip_directional": 0.11},
        "sdedit": {"lpips": 0.55, "clip_score": 26.52, "clip_directional": 0.11},
        "instruct-pix2pix": {"lpips": 0.27, "clip_score": 24.59, "clip_directional": 0.04},
        "masactrl": {"lpips": 0.41, "clip_score": 27.00, "clip_directional": 0.13},
        "adapedit": {"lpips": 0.29, "clip_score": 27.08, "clip_directional": 0.13},
    },
}
PAPERS_SHAPE = (768, 64)
"""Text width and latent side of Stable Diffusion 1.x: the paper's figures say nothing about any other."""


@dataclass(frozen=True, kw_only=True)
class PairScore:
    """One edit of a pair by one variant, measured.

    pair, settings, by: digests of what was edited, how, and by which metrics with which weights it was measured.
    """

    name: str
    pair: str
    variant: str
    settings: str
    by: str
    figures: dict[str, float]

    @property
    def key(self) -> Key:
        return self.pair, self.settings, self.by


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

    variants: Mapping[str, Variant]
    metrics: Sequence[PictureMetric]
    setup: Setup

    @property
    def columns(self) -> list[str]:
        return [column for metric in self.metrics for column in metric.columns]

    @property
    def about_metrics(self) -> dict[str, str]:
        return {name: value for metric in self.metrics for name, value in metric.about.items()}

    def edits(self, line: PairLine) -> list[PairEdit]:
        """A usable pair by every variant."""
        assert line.pair is not None
        by, pair = digest(self.about_metrics), line.pair
        return [
            PairEdit(line=line, pair=pair, label=label, variant=pair.variant(one), by=by)
            for label, one in self.variants.items()
        ]


def run_pairs(
    pipe: Any,
    lines: Sequence[PairLine],
    protocol: Protocol,
    folder: Path,
    *,
    file: str = "",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score the pairs of `lines` and write scores.jsonl, pairs.json, pairs.html and pictures into `folder`.

    What scores.jsonl has already is not run again. Lines and edits that can't be used are in the report, with the
    reason, and the rest goes on; means are over the pairs that every variant has. file: its name, for the report.
    Returns the report. Raises `AdapEditError` where no pair is left.
    """
    about = {"protocol": NAME, **protocol.setup.about(pipe.model)}
    store = ScoreStore(folder / "scores.jsonl", about, PairScore)
    pictures = PictureStore(folder / "pictures", about)
    failures = [failed for line in lines if (failed := _unusable(line, protocol)) is not None]
    bad = {failed.line for failed in failures}
    pairs = [protocol.edits(line) for line in lines if line.number not in bad]
    known = {score.key: score for score in store.scores}
    for scores, lost in _measured(pipe, pairs, protocol, known, pictures):
        store.append(scores)
        known |= {score.key: score for score in scores}
        failures += lost
        if progress is not None:
            done = sum(one.key in known for some in pairs for one in some)
            progress(done, len(pairs) * len(protocol.variants))
    whole = [some for some in pairs if all(one.key in known for one in some)]
    if not whole:
        raise AdapEditError(_nothing_left(lines, failures))
    table = {
        label: {
            column: [known[some[place].key].figures[column] for some in whole] for column in protocol.columns
        }
        for place, label in enumerate(protocol.variants)
    }
    shape = (pipe.model.runner.specs.text_channels, pipe.model.latent_size)
    report = {
        "study": NAME,
        "title": "Pairs of prompts",
        "about": {**about, **protocol.about_metrics, "file": file},
        "settings": dict(protocol.variants),
        "cases": len(lines),
        "usable": len(whole),
        "columns": protocol.columns,
        "groups": {"all": group(table, protocol.columns)},
        "curves": [],
        "paper": TABLE_1 if shape == PAPERS_SHAPE else None,
        "failures": [asdict(failed) for failed in failures],
    }
    return write_report(folder, report, _sheets(whole, table, pictures), str(pipe.model.device))


def _unusable(line: PairLine, protocol: Protocol) -> Failure | None:
    """Why a line can't be used, before anything is edited; None where it can."""
    try:
        if line.pair is None:
            raise AdapEditError(line.error or "")
        for prompt in (line.pair.source_prompt, line.pair.target_prompt):
            for metric in protocol.metrics:
                metric.check(prompt)
        for variant in protocol.variants.values():
            protocol.setup.request("a dog", "a cat", 0, line.pair.variant(variant))
    except AdapEditError as error:
        return Failure(line=line.number, name=line.name, error=str(error))
    return None


def _measured(
    pipe: Any,
    pairs: Sequence[Sequence[PairEdit]],
    protocol: Protocol,
    known: Mapping[Key, PairScore],
    pictures: PictureStore,
) -> Iterator[tuple[list[PairScore], list[Failure]]]:
    """Scores that are not known yet, a batch of pairs at a time, and what failed.

    What was measured by other metrics, and its pictures kept, is measured again without being edited again.
    """
    edited = {key[:2] for key in known}
    work: dict[Key, PairEdit] = {}
    for some in pairs:
        for one in some:
            if one.key not in known:
                work.setdefault(one.key, one)
    size = protocol.setup.batch * len(protocol.variants)
    for start in range(0, len(work), size):
        part = list(work.values())[start : start + size]
        there = {one.key: pictures.read(one) if one.key[:2] in edited else None for one in part}
        missing = [one for one in part if there[one.key] is None]
        made = _edited(pipe, [one.request(protocol.setup) for one in missing])
        results = dict(zip((one.key for one in missing), made, strict=True))
        scores, failed = [], []
        for one in part:
            try:
                shown = there[one.key] or _kept(results[one.key], one, pictures)
                scores.append(_score(one, shown, protocol))
            except AdapEditError as error:
                failed.append(
                    Failure(line=one.line.number, name=one.line.name, variant=one.label, error=str(error))
                )
        yield scores, failed


def _edited(pipe: Any, requests: Sequence[EditRequest]) -> list[Any]:
    """Results, or the error in the place of one.

    A request that is refused is refused before any work is done, so looking for it by halves costs little.
    """
    try:
        return edit(pipe, requests)
    except AdapEditError as error:
        if len(requests) == 1:
            return [error]
    half = len(requests) // 2
    return _edited(pipe, requests[:half]) + _edited(pipe, requests[half:])


def _kept(result: Any, one: PairEdit, pictures: PictureStore) -> Pictures:
    if isinstance(result, AdapEditError):
        raise result
    return pictures.write(one, result.source_image, result.target_image)


def _score(one: PairEdit, shown: Pictures, protocol: Protocol) -> PairScore:
    figures: dict[str, float] = {}
    for metric in protocol.metrics:
        figures |= metric.measure(*shown, one.pair.source_prompt, one.pair.target_prompt)
    for name, value in figures.items():
        if not math.isfinite(value):
            raise AdapEditError(f"{name} came out as {value}; try --dtype float32")
    pair, settings, by = one.key
    figures = {name: round(value, 6) for name, value in figures.items()}
    return PairScore(
        name=one.line.name, pair=pair, variant=one.label, settings=settings, by=by, figures=figures
    )


def _sheets(
    pairs: Sequence[Sequence[PairEdit]],
    table: Mapping[str, Mapping[str, Sequence[float]]],
    pictures: PictureStore,
) -> dict[str, Image.Image]:
    """Best, median and worst pairs of the first variant."""
    first, columns = next(iter(table.items()))
    ranked = "clip_directional" if "clip_directional" in columns else next(iter(columns))
    sheets = {}
    for title, places in extremes([COLUMNS[ranked].better * value for value in columns[ranked]]).items():
        rows = []
        for place in places:
            cells: list[Cell] = []
            for one in pairs[place]:
                shown, figures = pictures.read(one), table[one.label].items()
                note = ", ".join(f"{COLUMNS[c].title} {v[place]:.{COLUMNS[c].digits}f}" for c, v in figures)
                if shown is not None:
                    cells += [*([] if cells else [Cell(shown[0], "source")]), Cell(shown[1], one.label, note)]
            pair, name = pairs[place][0].pair, pairs[place][0].line.name
            rows.append((f"{name}: {pair.source_prompt} → {pair.target_prompt}", cells))
        sheets[f"{title} of {first} by {COLUMNS[ranked].title}"] = sheet(rows, columns=8, cell=144)
    return sheets


def _nothing_left(lines: Sequence[PairLine], failures: Sequence[Failure]) -> str:
    """A method that failed on everything says more than a line that did."""
    first = next((failure for failure in failures if failure.variant is not None), failures[0])
    of = f" by {first.variant}; leave it out with --only if it can't run here" if first.variant else ""
    return (
        f"none of the {len(lines)} lines could be scored by every method; "
        f"line {first.line} failed{of}: {first.error}"
    )
