"""The protocol from end to end: lines are checked, what is not yet scored is run, report and page are written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from adapedit.evaluation.protocol.page import make_page
from adapedit.evaluation.protocol.pairs import Pair, PairLine, checked
from adapedit.evaluation.protocol.paper import reference
from adapedit.evaluation.protocol.pictures import PictureStore
from adapedit.evaluation.protocol.report import Table, make_report, values
from adapedit.evaluation.protocol.scores import Failure, PairScore, Protocol, run
from adapedit.evaluation.scores import filled_settings
from adapedit.evaluation.store import ScoreStore, about_model, write_whole
from adapedit.metrics.pictures import COLUMNS
from adapedit.prepare import refuse_unknown_words
from adapedit.prompts.alignment import align
from adapedit.sheets import Cell, sheet
from adapedit_kernels.errors import AdapEditError

NAME, SCORES, FAILURES = "pairs", "scores.jsonl", "failures.jsonl"
SHOWN = 3
"""Pairs of each contact sheet."""


def run_pairs(
    pipe: Any,
    lines: Sequence[PairLine],
    protocol: Protocol,
    folder: Path,
    *,
    file: str = "",
    batch: int = 4,
    keep_pictures: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score the pairs of `lines` and write scores.jsonl, pairs.json, pairs.html and pictures into `folder`.

    What scores.jsonl has already is not run again. Lines and edits that can't be used are in failures.jsonl, with the
    reason, and the rest goes on; the report's means are over the pairs that every variant has. file: its name, for the
    report. progress: called with the number of edits that are scored or left out, and that of all. Returns the report.
    Raises `AdapEditError` where no pair is left.
    """
    about = {
        "protocol": NAME,
        **about_model(pipe.model, protocol.guidance_scale),
        "num_inference_steps": protocol.steps,
    }
    store = ScoreStore(folder / SCORES, about, PairScore)
    lines = checked(lines, lambda pair: check_pair(pair, pipe.model, protocol))
    failures = [
        Failure(line=line.number, name=line.name, error=line.error or "")
        for line in lines
        if line.pair is None
    ]
    good = [(line, line.pair) for line in lines if line.pair is not None]
    keys = {
        (line.name, variant): (pair.digest, protocol.settings_digest(pipe, pair, variant), protocol.by)
        for line, pair in good
        for variant in protocol.variants
    }
    pictures = PictureStore(folder if keep_pictures else None, about)
    known = {score.key: score for score in store.scores}
    early = len(failures)
    _write_failures(folder / FAILURES, failures)
    for part in run(pipe, lines, protocol, store.scores, pictures, batch=batch, failed=failures.append):
        store.append(part)
        known |= {score.key: score for score in part}
        if progress is not None:
            done = sum(key in known for key in keys.values())
            progress(done + len(failures) - early, len(keys))
    _write_failures(folder / FAILURES, failures)
    whole = [
        line.name
        for line, _ in good
        if all(keys[line.name, variant] in known for variant in protocol.variants)
    ]
    if not whole:
        raise AdapEditError(_nothing_left(lines, failures))
    table = {variant: [known[keys[name, variant]] for name in whole] for variant in protocol.variants}
    report = {
        "study": NAME,
        **about,
        **protocol.about_metrics,
        "file": file,
        "lines": len(lines),
        "scored": len(whole),
        "columns": list(protocol.columns),
        "settings": {
            variant: filled_settings(pipe, settings).model_dump()
            for variant, settings in protocol.variants.items()
        },
        **make_report(table, protocol.columns),
        "paper": reference(pipe.model),
        "failures": [asdict(failure) for failure in failures],
    }
    write_whole(folder / f"{NAME}.json", json.dumps(report, indent=2) + "\n")
    pairs = {line.name: pair for line, pair in good}
    sheets = contact_sheets(table, whole, pairs, pictures, protocol.columns)
    page = make_page({**about, **protocol.about_metrics}, report, sheets)
    write_whole(folder / f"{NAME}.html", page)
    return report


def check_pair(pair: Pair, model: Any, protocol: Protocol) -> None:
    """Raise `AdapEditError` for what the model or a metric can't read, before any pair is edited."""
    for name in ("source", "target"):
        prompt = getattr(pair, f"{name}_prompt")
        refuse_unknown_words(prompt, name, model.facts.known_words, model.name)
        for metric in protocol.metrics:
            metric.check(prompt)
    align(pair.source_prompt, pair.target_prompt, model.tokenizer, max_length=model.max_tokens)
    for settings in protocol.variants.values():
        pair.settings(settings)


def contact_sheets(
    table: Table, names: Sequence[str], pairs: dict[str, Pair], pictures: PictureStore, columns: Sequence[str]
) -> dict[str, Image.Image]:
    """Best, median and worst pairs of the first variant, from the pictures that were kept; none where none were."""
    first = next(iter(table))
    ranked = COLUMNS["clip_directional" if "clip_directional" in columns else columns[0]]
    worth = [ranked.better * value for value in values(table[first], ranked.name)]
    order = sorted(range(len(names)), key=lambda place: (-worth[place], place))
    middle = max(0, len(order) // 2 - SHOWN // 2)
    chosen = {
        "Best": order[:SHOWN],
        "Median": order[middle : middle + SHOWN],
        "Worst": order[-SHOWN:],
    }
    sheets = {}
    for title, places in chosen.items():
        rows = [_row(place, names[place], table, pairs, pictures, columns) for place in places]
        found = [row for row in rows if row is not None]
        if found:
            sheets[f"{title} of {first} by {ranked.title}"] = sheet(found, columns=8, cell=144)
    return sheets


def _row(
    place: int,
    name: str,
    table: Table,
    pairs: dict[str, Pair],
    pictures: PictureStore,
    columns: Sequence[str],
) -> tuple[str, list[Cell]] | None:
    cells: list[Cell] = []
    for variant, scores in table.items():
        shown = pictures.read(scores[place].picture)
        if shown is None:
            return None
        if not cells:
            cells.append(Cell(shown[0], "source"))
        figures = scores[place].figures
        note = ", ".join(f"{COLUMNS[c].title} {figures[c]:.{COLUMNS[c].digits}f}" for c in columns)
        cells.append(Cell(shown[1], variant, note))
    return f"{name}: {pairs[name].source_prompt} → {pairs[name].target_prompt}", cells


def _nothing_left(lines: Sequence[PairLine], failures: Sequence[Failure]) -> str:
    """A method that failed on everything says more than a line that did."""
    first = next((failure for failure in failures if failure.variant is not None), failures[0])
    of = f" by {first.variant}; leave it out with --methods if it can't run here" if first.variant else ""
    return (
        f"none of the {len(lines)} lines could be scored by every method; "
        f"line {first.line} failed{of}: {first.error}"
    )


def _write_failures(path: Path, failures: Sequence[Failure]) -> None:
    if failures:
        write_whole(path, "".join(json.dumps(asdict(failure)) + "\n" for failure in failures))
    else:
        path.unlink(missing_ok=True)
