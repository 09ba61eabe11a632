"""The report as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

from adapedit.evaluation.page import cell, document, image_tag, listing, table
from adapedit.metrics.pictures import COLUMNS, Column

TITLE = "Pairs of prompts"
MOST_FAILURES = 50
"""Shown on the page; all of them are in failures.jsonl."""


def make_page(about: Mapping[str, Any], report: Mapping[str, Any], sheets: Mapping[str, Image.Image]) -> str:
    """The page of a report; `sheets` are shown under their titles."""
    columns = [COLUMNS[name] for name in report["columns"]]
    first = next(iter(report["means"]))
    parts = [
        f"<h1>{TITLE}</h1>",
        f"<p>{report['scored']} of {report['lines']} lines of {escape(report['file'])}, each edited by every method. "
        "Means with 95 % bootstrap intervals over the pairs.</p>",
        listing(about),
        _means(report["means"], columns),
        _reference(report["paper"], columns),
        _against(first, report["against"], columns),
    ]
    for heading, picture in sheets.items():
        parts += [f"<h2>{escape(heading)}</h2>", image_tag(picture)]
    parts += [_failures(report["failures"])]
    meanings = {column.title: f"{column.meaning}; {_direction(column)}" for column in columns}
    return document(TITLE, [*parts, "<h2>What the columns mean</h2>", listing(meanings)])


def heading(column: Column) -> str:
    """The column's title with an arrow to where better is."""
    return f"{column.title} {'↑' if column.better > 0 else '↓'}"


def _direction(column: Column) -> str:
    return "more is better" if column.better > 0 else "less is better"


def _means(means: Mapping[str, Any], columns: Sequence[Column]) -> str:
    best = {
        column.name: column.better
        * max(column.better * found[column.name]["value"] for found in means.values())
        for column in columns
    }
    rows = [
        [escape(variant), *(cell(found[c.name], best[c.name], c.digits) for c in columns)]
        for variant, found in means.items()
    ]
    return table(["", *(heading(column) for column in columns)], rows)


def _reference(paper: Mapping[str, Any] | None, columns: Sequence[Column]) -> str:
    if paper is None:
        return ""
    named = [column for column in columns if any(column.name in found for found in paper["means"].values())]
    rows = [
        [escape(method), *(str(found.get(column.name, "")) for column in named)]
        for method, found in paper["means"].items()
    ]
    title = "<h2>For comparison: what the paper reports</h2>"
    return f"{title}<p>{escape(paper['says'])}</p>" + table(["", *(heading(c) for c in named)], rows)


def _against(first: str, against: Mapping[str, Any], columns: Sequence[Column]) -> str:
    if not against:
        return ""
    rows = [
        [
            escape(other),
            *(
                f"{cell(found[c.name]['difference'], None, c.digits)}<small>p {found[c.name]['p_value']:.4f}</small>"
                for c in columns
            ),
        ]
        for other, found in against.items()
    ]
    title = f"<h2>{escape(first)} minus the others</h2><p>Over the same pairs; p of the permutation test.</p>"
    return title + table(["", *(heading(column) for column in columns)], rows)


def _failures(failures: Sequence[Mapping[str, Any]]) -> str:
    if not failures:
        return ""
    rows = [
        [
            escape(f"line {found['line']}: {found['name']}"),
            escape(found["variant"] or ""),
            escape(found["error"]),
        ]
        for found in failures[:MOST_FAILURES]
    ]
    more = len(failures) - len(rows)
    note = f"<p>and {more} more in failures.jsonl</p>" if more else ""
    return f"<h2>Left out ({len(failures)})</h2>" + table(["", "method", "why"], rows) + note
