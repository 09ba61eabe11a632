"""What the attention layers of one call take from calls that are over, and leave for later ones.

A source whose trajectory was recorded needs no row: where a row of the call would look at it, the layers find what
it had there appended behind the rows of the call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Tap:
    """Keeps copies of what one source has in the layers of one call.

    row:     its conditional row in the call.
    queries: whether those of cross-attention are wanted.
    hidden:  by self-attention layer, the source's rows [first, end) whose input is wanted.
    """

    row: int
    queries: bool
    hidden: Mapping[int, tuple[int, int]]
    kept_queries: dict[int, Tensor] = field(default_factory=dict)  # by layer, [1, P, C]
    kept_hidden: dict[int, Tensor] = field(default_factory=dict)  # by layer, [rows, P, C]


@dataclass(frozen=True, kw_only=True, eq=False)
class Exchange:
    """Beside the B rows of a call, E replayed ones in cross-attention and E_l in self-attention layer l.

    The edit tensors of the call's controls, keys and values are for B + E rows then; its self-attention tables are
    [L, B] with numbers below B + E_l.

    queries: per cross-attention layer, parts [*, P, C] of the E replayed rows; empty: E is 0.
    hidden:  by self-attention layer, parts [*, P, C] of its E_l replayed rows; absent: E_l is 0.
    """

    queries: tuple[tuple[Tensor, ...], ...] = ()
    hidden: Mapping[int, tuple[Tensor, ...]] = field(default_factory=dict)
    taps: tuple[Tap, ...] = ()

    @property
    def replayed(self) -> int:
        """E."""
        return sum(part.shape[0] for part in self.queries[0]) if self.queries else 0

    @property
    def most(self) -> int:
        """The largest E_l."""
        return max((sum(part.shape[0] for part in parts) for parts in self.hidden.values()), default=0)

    def with_queries(self, layer: int, query: Tensor) -> Tensor:
        """Queries [B, P, C] of the call's rows to [B + E, P, C]."""
        for tap in self.taps:
            if tap.queries:
                tap.kept_queries[layer] = query[tap.row : tap.row + 1].clone()
        return torch.cat([query, *self.queries[layer]]) if self.queries else query

    def with_hidden(self, layer: int, hidden_states: Tensor) -> Tensor:
        """Inputs [B, P, C] of self-attention to [B + E_l, P, C]."""
        parts = self.hidden.get(layer, ())
        return torch.cat([hidden_states, *parts]) if parts else hidden_states

    def keep_hidden(self, layer: int, hidden_states: Tensor) -> None:
        """Keep what the taps want of the input [B, P, C] of self-attention."""
        for tap in self.taps:
            if layer in tap.hidden:
                first, end = tap.hidden[layer]
                tap.kept_hidden[layer] = hidden_states[first:end].clone()
