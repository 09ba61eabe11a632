"""Inversions: from a real picture to where an edit of it begins. One file each, all data for the engine."""

from __future__ import annotations

from adapedit.inversion.settings import INVERSIONS, InversionSettings, make_inversion_settings

__all__ = ["INVERSIONS", "InversionSettings", "make_inversion_settings"]
