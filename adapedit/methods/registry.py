"""From settings to the method that they configure."""

from __future__ import annotations

from typing import Any

from adapedit.methods.adapedit import AdapEditMethod
from adapedit.methods.context import Method
from adapedit.methods.masactrl import MasaCtrlMethod
from adapedit.methods.pix2pix import InstructPix2PixMethod
from adapedit.methods.plain import PlainMethod
from adapedit.methods.prompt_to_prompt import PromptToPromptMethod
from adapedit.methods.sdedit import SDEditMethod
from adapedit.methods.settings import AdapEdit, InstructPix2Pix, MasaCtrl, Plain, PromptToPrompt, SDEdit
from adapedit.model import ModelFacts

_KINDS: dict[type, Any] = {
    Plain: PlainMethod,
    PromptToPrompt: PromptToPromptMethod,
    AdapEdit: AdapEditMethod,
    MasaCtrl: MasaCtrlMethod,
    SDEdit: SDEditMethod,
    InstructPix2Pix: InstructPix2PixMethod,
}


def inverts(settings: Any) -> bool:
    """Whether a real picture has to be inverted for this method."""
    return bool(_KINDS[type(settings)].inverts)


def make_method(settings: Any, facts: ModelFacts) -> Method:
    """The method of these settings; knobs that were not named take the model's own defaults."""
    return _KINDS[type(settings)](settings.with_defaults(facts.defaults.get(settings.name, {})))
