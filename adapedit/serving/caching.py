"""What edits of one server have in common and need not compute twice, each bounded in bytes."""

from __future__ import annotations

from dataclasses import dataclass, fields, make_dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from adapedit.inversion.base import Inverted
from adapedit.inversion.run import inverted_bytes
from adapedit.model import EditModel
from adapedit_engine.cache import ByteCache, digest, tensor_bytes
from adapedit_engine.loop import EditOutcome


@dataclass(frozen=True, kw_only=True)
class CachingModel(EditModel):
    """The same model, which encodes every prompt once. A prompt is always encoded alone, found or not."""

    embeddings: ByteCache[Tensor]

    @classmethod
    def of(cls, model: EditModel, max_bytes: int) -> CachingModel:
        """A model of the class of `model`, too: what that does in its own way, as a bundle does, stays."""
        bases = (type(model),) if isinstance(model, cls) else (cls, type(model))
        kind = make_dataclass(f"Caching{type(model).__name__}", (), bases=bases, frozen=True, kw_only=True)
        parts = {field.name: getattr(model, field.name) for field in fields(model)}
        return kind(**parts | {"embeddings": ByteCache(max_bytes, tensor_bytes)})

    def encode_ids(self, input_ids: Tensor) -> Tensor:
        """See `EditModel.encode_ids`."""
        if len(input_ids) != 1:
            return super().encode_ids(input_ids)
        return self.embeddings.get(digest(input_ids), lambda: super(CachingModel, self).encode_ids(input_ids))


def outcome_bytes(outcome: EditOutcome) -> int:
    """Bytes of an outcome's tensors."""
    values = (getattr(outcome, field.name) for field in fields(outcome))
    return tensor_bytes([value for value in values if isinstance(value, Tensor)])


@dataclass(frozen=True, kw_only=True, eq=False)
class Caches:
    """What edits leave for later ones. pictures: of sources."""

    observations: ByteCache[EditOutcome]
    inversions: ByteCache[Inverted]
    pictures: ByteCache[Image.Image]

    @classmethod
    def of(cls, max_bytes: int) -> Caches:
        """max_bytes: of each."""
        return cls(
            observations=ByteCache(max_bytes, outcome_bytes),
            inversions=ByteCache(max_bytes, inverted_bytes),
            pictures=ByteCache(max_bytes, picture_bytes),
        )

    @property
    def stats(self) -> dict[str, Any]:
        """The `CacheStats` of each, by name."""
        return {field.name: getattr(self, field.name).stats for field in fields(self)}


def picture_bytes(picture: Image.Image) -> int:
    """Bytes of a picture's pixels."""
    return picture.width * picture.height * len(picture.getbands())
