"""The command line: edit, sweep, compare, words, batch, invert; export, build, inspect, check.

It loads its parts when they are used: a mistake costs no import of torch.
"""

from __future__ import annotations

from adapedit.cli.main import main

__all__ = ["main"]
