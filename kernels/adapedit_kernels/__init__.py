"""Operations of attention editing: a plain reference, a Triton kernel and one public function each.

The names below are loaded when they are first used: ``import adapedit_kernels.errors`` does not import torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapedit_kernels.attention_maps import attention_maps as attention_maps
    from adapedit_kernels.dispatch import chosen_implementation as chosen_implementation
    from adapedit_kernels.edited_attention import edited_attention as edited_attention
    from adapedit_kernels.edited_attention import prepare_values as prepare_values
    from adapedit_kernels.errors import AdapEditError as AdapEditError
    from adapedit_kernels.errors import ImplementationError as ImplementationError
    from adapedit_kernels.group_norm import group_norm as group_norm
    from adapedit_kernels.guided_step import guided_step as guided_step
    from adapedit_kernels.spatial_similarity import spatial_similarity as spatial_similarity
    from adapedit_kernels.word_relation import RelationKnobs as RelationKnobs
    from adapedit_kernels.word_relation import WordRelation as WordRelation
    from adapedit_kernels.word_relation import word_relation as word_relation

_HOMES = {
    "AdapEditError": "errors",
    "ImplementationError": "errors",
    "RelationKnobs": "word_relation",
    "WordRelation": "word_relation",
    "attention_maps": "attention_maps",
    "chosen_implementation": "dispatch",
    "edited_attention": "edited_attention",
    "group_norm": "group_norm",
    "guided_step": "guided_step",
    "prepare_values": "edited_attention",
    "spatial_similarity": "spatial_similarity",
    "word_relation": "word_relation",
}
__all__ = sorted(_HOMES)


class _Package(ModuleType):
    """An operation and its folder have one name, and importing the folder would set it to the folder."""

    def __setattr__(self, name: str, value: Any) -> None:
        if _HOMES.get(name) == name and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'adapedit_kernels' has no attribute {name!r}")
    value = getattr(import_module(f"adapedit_kernels.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
