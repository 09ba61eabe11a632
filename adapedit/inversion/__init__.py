"""Inversions: from a real picture to where an edit of it begins. One file each, all data for the engine."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from adapedit.inversion.base import INVERSIONS, Inversion, make_inversion_settings
from adapedit.inversion.ddim import DDIM
from adapedit.inversion.direct import Direct
from adapedit.inversion.edit_friendly import EditFriendly
from adapedit.inversion.null_text import NullText

__all__ = [
    "DDIM",
    "INVERSIONS",
    "Direct",
    "EditFriendly",
    "Inversion",
    "InversionSettings",
    "NullText",
    "make_inversion_settings",
]


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


InversionSettings = Annotated[
    Annotated[DDIM | Direct | EditFriendly | NullText, Field(discriminator="name")], BeforeValidator(_named)
]
"""An inversion in a request: {"name": ..., and its knobs}, or its name alone."""
