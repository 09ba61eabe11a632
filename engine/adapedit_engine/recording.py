"""Recorded source trajectories: what later edits of the same source look at, so that the source is run once.

A recording has, for every step, the prediction of the source's rows with their maps and features, and what the
attention layers of other rows may take from it: queries of cross-attention (the keys follow from the prompt) and the
inputs of self-attention. The loop then works as ever, on the same tracks; only the UNet is given fewer rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from adapedit_engine.caches import tensor_bytes


@dataclass(frozen=True, kw_only=True)
class Reach:
    """What other rows look at in a source, or what of it was recorded.

    cross: its cross-attention, in all layers. self_rows: per self-attention layer, of how many guidance rows: none,
    the conditional one alone, or all. maps: its maps and features.
    """

    cross: bool
    self_rows: tuple[int, ...]
    maps: bool

    def covers(self, other: Reach) -> bool:
        """Whether a recording of this much is enough for `other`."""
        return self == self.union(other)

    def union(self, other: Reach) -> Reach:
        """What is enough for both."""
        rows = zip(self.self_rows, other.self_rows, strict=True)
        return Reach(
            cross=self.cross or other.cross,
            self_rows=tuple(max(pair) for pair in rows),
            maps=self.maps or other.maps,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceStep:
    """One step of a recording, in the dtypes in which the runner computed it.

    noise_pred [g, C, h, w] of the source's guidance rows; maps [1, P, N] and features [1, P, V] of the conditional
    one; queries: per cross-attention layer, [1, P, C]; hidden: by self-attention layer, [rows, P, C].
    """

    noise_pred: Tensor
    maps: Tensor | None
    features: Tensor | None
    queries: Mapping[int, Tensor]
    hidden: Mapping[int, Tensor]

    @property
    def tensors(self) -> list[Tensor]:
        seen = [tensor for tensor in (self.maps, self.features) if tensor is not None]
        return [self.noise_pred, *seen, *self.queries.values(), *self.hidden.values()]


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """A source's trajectory. `steps` fills up, by number, while the edit runs that records it.

    That is the one thing in the loop that is changed in place: a step that is run again after an error is
    written over by itself.
    """

    reach: Reach
    length: int
    steps: dict[int, SourceStep] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether every step is there."""
        return len(self.steps) == self.length

    @property
    def bytes(self) -> int:
        return tensor_bytes([tensor for step in self.steps.values() for tensor in step.tensors])


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """What an edit does with its source's recording: it replays it, or makes it. needs: what the edit looks at."""

    recording: Recording
    needs: Reach
    replays: bool
