"""The HTTP service: a thin room over `adapedit.server`, with jobs that outlive the process. Nothing is loaded here.

A module of its own, so that whoever lacks the extra is told so before anything else is imported.
"""

from __future__ import annotations

from importlib.util import find_spec

from adapedit_kernels.errors import AdapEditError


def require(extra: str, *modules: str) -> None:
    """Raise `AdapEditError` with pip's command where a module of an extra is missing."""
    for module in modules:
        try:
            there = find_spec(module) is not None
        except ModuleNotFoundError:  # what it would be in
            there = False
        if not there:
            raise AdapEditError(f'{module} is not installed; run: pip install "adapedit[{extra}]"')
