"""Editing methods: each is one file, with its knobs, that turns two aligned prompts into data for the engine."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from adapedit.methods.adapedit import AdapEdit
from adapedit.methods.base import METHODS, Method, make_settings, one_line
from adapedit.methods.masactrl import MasaCtrl
from adapedit.methods.pix2pix import InstructPix2Pix
from adapedit.methods.plain import Plain
from adapedit.methods.prompt_to_prompt import PromptToPrompt
from adapedit.methods.sdedit import SDEdit

__all__ = [
    "METHODS",
    "AdapEdit",
    "InstructPix2Pix",
    "MasaCtrl",
    "Method",
    "MethodSettings",
    "Plain",
    "PromptToPrompt",
    "SDEdit",
    "make_settings",
    "one_line",
]

MethodSettings = Annotated[
    AdapEdit | MasaCtrl | InstructPix2Pix | Plain | PromptToPrompt | SDEdit, Field(discriminator="name")
]
"""A method in a request: {"name": ..., and its knobs}."""
