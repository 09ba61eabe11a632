"""The report as one HTML page that needs nothing else: tables with intervals, plots, contact sheets."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

from adapedit.evaluation.plots import knob_curves, success_against_background
from adapedit.evaluation.report import LEAST, METRICS

STYLE = """
body { font: 15px/1.5 sans-serif; color: #1c1e24; max-width: 1080px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: .6em 0 1.6em } td, th { padding: .25em .8em; text-align: right }
th:first-child, td:first-child { text-align: left } tr { border-bottom: 1px solid #e4e4e8 }
td small { color: #70747e; margin-left: .35em } img { max-width: 100% } h2 { margin-top: 1.8em }
.best { font-weight: 600 } dl { display: grid; grid-template-columns: max-content auto; gap: .1em 1em } dd { margin: 0 }
"""

MEANING = {
    "success": "share of edits in which the reader sees the new words where they belong",
    "kept": "share in which everything else reads as in the source",
    "background": "structural similarity to the source where the true edit changes nothing",
    "product": "success and kept, times background; what methods are ranked by",
    "psnr": "decibels to the source where the true edit changes nothing",
    "truth_psnr": "decibels to the true edited picture, of drawn sources",
    "truth_ssim": "structural similarity to the true edited picture, of drawn sources",
    "moved": "root mean square difference to the source over the whole picture",
}


def make_page(
    title: str, about: Mapping[str, Any], report: Mapping[str, Any], sheets: Mapping[str, Image.Image]
) -> str:
    """The page of a report; `sheets` are shown under their titles."""
    groups = report["groups"]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{report['usable']} of {report['cases']} edits; the others are left out for all methods, because their "
        "source picture has another number of figures than its prompt or shows the edit already. Means with 95 % "
        "bootstrap intervals.</p>",
        listing(about),
        success_against_background(groups["all"]["means"]),
    ]
    for curve in report["curves"]:
        parts += [f"<h2>{escape(_sweep_title(curve))}</h2>", knob_curves(curve), _correlations(curve)]
    for name, group in groups.items():
        heading = "All kinds of edit" if name == "all" else name.capitalize()
        parts += [f"<h2>{escape(heading)} ({group['count']} edits)</h2>", _means(group), _comparisons(group)]
    for heading, picture in sheets.items():
        parts += [f"<h2>{escape(heading)}</h2>", image_tag(picture)]
    parts += ["<h2>What the columns mean</h2>", listing(MEANING)]
    return document(title, parts)


def document(title: str, parts: Sequence[str]) -> str:
    """A whole page of its parts."""
    body = "\n".join(part for part in parts if part)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body>{body}</body></html>\n"
    )


def _means(group: Mapping[str, Any]) -> str:
    means = group["means"]
    shown = list(next(iter(means.values())))
    best = {metric: max(found[metric]["value"] for found in means.values()) for metric in METRICS[:4]}
    rows = []
    for variant, found in means.items():
        cells = [cell(found[metric], best.get(metric), 1 if "psnr" in metric else 3) for metric in shown]
        rows.append([escape(variant), *cells])
    return table(["", *shown], rows)


def _comparisons(group: Mapping[str, Any]) -> str:
    if not group["product against"]:
        return ""
    first = next(iter(group["means"]))
    rows = [
        [
            escape(other),
            cell(found["difference"], None, 3),
            f"{found['p_value']:.4f}",
            f"{found['better']} / {found['worse']}",
        ]
        for other, found in group["product against"].items()
    ]
    head = ("difference", "p (permutation)", f"edits better / worse, by more than {LEAST:g}")
    return table([f"product of {escape(first)} minus that of", *head], rows)


def _correlations(curve: Mapping[str, Any]) -> str:
    names = ("success", "moved", "background", "product")
    cells = [cell(curve[name]["rank correlation"], None, 2) for name in names]
    return table(["rank correlation with", *names], [[escape(curve["knob"]), *cells]])


def _sweep_title(curve: Mapping[str, Any]) -> str:
    fixed = ", ".join(f"{name} = {value}" for name, value in curve["fixed"].items())
    direction = "success and movement should " + ("rise" if curve["expected sign"] > 0 else "fall")
    return f"{curve['knob']}{f' at {fixed}' if fixed else ''}: {direction}"


def cell(interval: Mapping[str, float], best: float | None, digits: int) -> str:
    """A mean with its interval; the best of a column stands out."""
    value = f"{interval['value']:.{digits}f}"
    if best is not None and interval["value"] == best:
        value = f'<span class="best">{value}</span>'
    return f"{value}<small>{interval['low']:.{digits}f} to {interval['high']:.{digits}f}</small>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    top = "".join(f"<th>{name}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def listing(entries: Mapping[str, Any]) -> str:
    """Names and what they stand for."""
    items = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in entries.items())
    return f"<dl>{items}</dl>"


def image_tag(picture: Image.Image) -> str:
    """A picture inside the page itself."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=88)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
