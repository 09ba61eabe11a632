"""Soft, text-guided image editing: two prompts in, the picture and its edit out.

The names below are loaded when they are first used, so that ``import adapedit`` costs next to nothing and
does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from adapedit.calls import EditWarning
    from adapedit.pipeline import AdapEditPipeline
    from adapedit.prompts.alignment import Alignment, Word, align
    from adapedit.request import EditRequest
    from adapedit.result import EditResult
    from adapedit_kernels.errors import AdapEditError

_HOMES = {
    "AdapEditError": "adapedit_kernels.errors",
    "AdapEditPipeline": "adapedit.pipeline",
    "Alignment": "adapedit.prompts.alignment",
    "EditRequest": "adapedit.request",
    "EditResult": "adapedit.result",
    "EditWarning": "adapedit.calls",
    "Word": "adapedit.prompts.alignment",
    "align": "adapedit.prompts.alignment",
}

__all__ = [
    "AdapEditError",
    "AdapEditPipeline",
    "Alignment",
    "EditRequest",
    "EditResult",
    "EditWarning",
    "Word",
    "__version__",
    "align",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'adapedit' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
