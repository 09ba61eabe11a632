"""What commands print: tables of words, where the files are, or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from adapedit.prompts.alignment import Alignment, Word
from adapedit.result import EditResult, WordReport

BAR = 12


def print_json(value: dict[str, Any]) -> None:
    """One JSON object."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def words_table(alignment: Alignment, reports: Sequence[WordReport] | None = None) -> Table:
    """Target words with what they stand for, and the steps that FWT gave them where they are known."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("word")
    table.add_column("")
    table.add_column("tokens", justify="right")
    held = reports is not None and any(report.word_steps is not None for report in reports)
    related = reports is not None and any(report.relation is not None for report in reports)
    if related:
        table.add_column("Λ relation", justify="right")
    if held:
        table.add_column("τ held", justify="right")
        table.add_column("")
    for place, word in enumerate(alignment.target_words):
        cells = [Text(word.text, style="bold" if word.is_key else ""), _what(word, alignment), _tokens(word)]
        report = None if reports is None else reports[place]
        if report is not None and related:
            cells.append(Text("" if report.relation is None else f"{report.relation:.2f}"))
        if report is not None and held:
            share = report.word_steps or 0.0
            cells += [Text("" if report.word_steps is None else f"{share:.2f}"), _bar(share)]
        table.add_row(*cells)
    for word in alignment.deleted_words:
        table.add_row(Text(word.text, style="strike dim"), _what(word, alignment), Text(""))
    return table


def print_words(alignment: Alignment, reports: Sequence[WordReport] | None = None) -> None:
    """The table, on stdout."""
    Console().print(words_table(alignment, reports))


def print_saved(folder: Path, files: Sequence[str], results: Sequence[EditResult]) -> None:
    """Where the pictures are, how long it took, and the seed that all have."""
    seconds = results[0].timings["total"]
    seeds = {result.request.seed for result in results}
    seed = f", seed {seeds.pop()}" if len(seeds) == 1 else ""
    names = ", ".join(files[:-1]) + f" and {files[-1]}" if len(files) > 1 else files[0]
    Console().print(
        f"Saved {names} in [bold]{escape(str(folder))}[/bold] [dim]({seconds:.1f} s{seed})[/dim]",
        highlight=False,
        soft_wrap=True,
    )


def words_dict(alignment: Alignment) -> dict[str, Any]:
    """The alignment alone, for JSON."""
    return {
        "source_prompt": alignment.source_prompt,
        "target_prompt": alignment.target_prompt,
        "source_words": [asdict(word) for word in alignment.source_words],
        "target_words": [asdict(word) for word in alignment.target_words],
    }


def _what(word: Word, alignment: Alignment) -> Text:
    if word.kind == "deleted":
        anchor = "" if word.anchor is None else f", was of {alignment.target_words[word.anchor].text!r}"
        return Text(f"deleted{anchor}", style="dim")
    if word.kind == "replaced" and word.counterpart is not None:
        return Text(f"replaces {alignment.source_words[word.counterpart].text}", style="bold")
    return Text(word.kind, style="bold" if word.is_key else "dim")


def _tokens(word: Word) -> Text:
    first, last = word.tokens[0], word.tokens[-1]
    return Text(str(first) if first == last else f"{first}–{last}", style="dim")


def _bar(share: float) -> Text:
    full = round(share * BAR)
    return Text("█" * full, style="cyan") + Text("░" * (BAR - full), style="dim")
