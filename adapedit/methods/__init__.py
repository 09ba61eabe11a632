"""Editing methods: each is one file that turns two aligned prompts into data for the engine."""

from __future__ import annotations

from adapedit.methods.settings import METHODS, MethodSettings, make_settings

__all__ = ["METHODS", "MethodSettings", "make_settings"]
