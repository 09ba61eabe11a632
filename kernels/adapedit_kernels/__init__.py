"""Operations of attention editing: a plain reference, a Triton kernel and one public function each."""

from adapedit_kernels.dispatch import chosen_implementation
from adapedit_kernels.edited_attention import edited_attention, edited_attention_with_maps
from adapedit_kernels.errors import AdapEditError, ImplementationError
from adapedit_kernels.guided_step import guided_step
from adapedit_kernels.spatial_similarity import spatial_similarity
from adapedit_kernels.word_relation import RelationSettings, WordRelation, word_relation

__all__ = [
    "AdapEditError",
    "ImplementationError",
    "RelationSettings",
    "WordRelation",
    "chosen_implementation",
    "edited_attention",
    "edited_attention_with_maps",
    "guided_step",
    "spatial_similarity",
    "word_relation",
]
