"""The HTTP service: a thin room over `adapedit.server`, with jobs that outlive the process. Nothing is loaded here.

A module of its own, so that whoever lacks the extra is told so before anything else is imported.
"""

from __future__ import annotations

from importlib.util import find_spec

from adapedit_kernels.errors import AdapEditError


def require(extra: str, *modules: str) -> None:
    """Raise `AdapEditError` with pip's command where a module of an extra is missing."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise AdapEditError(f'{missing[0]} is not installed; run: pip install "adapedit[{extra}]"')
