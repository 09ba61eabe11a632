"""The command line: `adapedit edit`, `sweep`, `compare`, `words`."""

from __future__ import annotations

from adapedit.cli.entry import main

__all__ = ["main"]
