"""What edits have in common and need not compute twice: one source for many edits, and what they leave for later ones.

Edits of one source share its track: K of them take 2 (1 + K) rows of the model instead of 4 K. The track takes nothing
from the others, so each edit is what it would have been alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from PIL import Image
from torch import Tensor

from adapedit.inversion.base import Inverted
from adapedit_engine.cache import ByteCache, ProjectionCache, digest, tensor_bytes
from adapedit_engine.plan import EditOutcome, EditPlan
from adapedit_engine.runners.base import Runner

CACHE_BYTES = 64 * 2**20


def share(plans: Sequence[EditPlan], *, max_rows: int | None = None) -> list[tuple[int, ...]]:
    """Places of the plans that `merge` can make one of, each place once, in the order of their first ones.

    max_rows: the rows that a merged plan takes at most.
    """
    groups: list[tuple[Hashable, int, list[int]]] = []
    for place, plan in enumerate(plans):
        key, more = source_key(plan), plan.rows - plan.guidance
        for i, (other, rows, members) in enumerate(groups):
            if key is not None and key == other and (max_rows is None or rows + more <= max_rows):
                groups[i] = (key, rows + more, [*members, place])
                break
        else:
            groups.append((key, plan.rows, [place]))
    return [tuple(members) for _, _, members in groups]


def source_key(plan: EditPlan) -> bytes | None:
    """What has to be the same for plans to share their first track; None: it can't be shared."""
    if plan.source_track[0] != 0 or (plan.noise is not None and plan.noise.ndim == 5):
        return None
    first: list[Any] = [plan.latents[0], plan.encoder_hidden_states[0], plan.guidance_weights[0]]
    first += [part for name in sorted(plan.conditioning) for part in (name, plan.conditioning[name][0])]
    first += [plan.noise, plan.unconditional_steps, plan.source_latents]
    first += [plan.collect, plan.record, plan.guidance_until]
    first += [getattr(plan.schedule, entry.name) for entry in fields(plan.schedule)]
    adaptive = plan.adaptive
    if adaptive is not None and bool(adaptive.joined.any()):
        # What is looked for in the source goes into the spatial map of its targets.
        first += [getattr(adaptive, entry.name)[0] for entry in fields(adaptive) if entry.name != "limit"]
    content = hashlib.sha256()
    for value in first:
        if isinstance(value, Tensor) and value.device.type == "cpu":
            content.update(digest(value))
        elif isinstance(value, Tensor):  # reading it would wait for the device
            content.update(f"{value.data_ptr()} {value.shape} {value.stride()}".encode())
        else:
            content.update(repr(value).encode())
    return content.digest()


@dataclass(frozen=True, kw_only=True, eq=False)
class Caches:
    """What edits leave for later ones, each bounded in bytes.

    prompts: what text encoders make of them, by token ids. projections: keys and values of prompts.
    observations: first passes. pictures: of sources, by their latents.
    """

    prompts: ByteCache[dict[str, Tensor]]
    projections: ProjectionCache
    observations: ByteCache[EditOutcome]
    inversions: ByteCache[Inverted]
    pictures: ByteCache[Image.Image]

    @classmethod
    def of(cls, runner: Runner, max_bytes: int = CACHE_BYTES) -> Caches:
        """max_bytes: of each."""
        return cls(
            prompts=ByteCache(max_bytes, tensor_bytes),
            projections=ProjectionCache(runner, max_bytes),
            observations=ByteCache(max_bytes, _bytes_of_fields),
            inversions=ByteCache(max_bytes, lambda inverted: inverted.bytes),
            pictures=ByteCache(max_bytes, lambda picture: picture.width * picture.height * 3),
        )

    @property
    def stats(self) -> dict[str, Any]:
        """The `CacheStats` of each, by name."""
        return {entry.name: getattr(self, entry.name).stats for entry in fields(self)}


def _bytes_of_fields(value: Any) -> int:
    tensors = (getattr(value, entry.name) for entry in fields(value))
    return tensor_bytes([tensor for tensor in tensors if isinstance(tensor, Tensor)])
