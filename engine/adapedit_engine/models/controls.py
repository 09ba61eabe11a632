"""Controls: everything an editing method can ask of one UNet call, as tensors.

Equations (R = M_source A, W = u + v S, M' = R + W (M - R)) are those of Prompt-to-Prompt (Hertz et al., 2022)
and of AdapEdit's equations 4 and 8, written so that every controller of the family is data. What is edited is a list
of E rows, and the maps that are reported are a list of M.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

EDIT_NAMES = ("edited_row", "source_row", "token_map", "own_weight", "spatial_weight", "spatial_map")
SELF_NAMES = ("self_query_row", "self_key_row", "self_value_row")
CONTROL_NAMES = (*EDIT_NAMES, "map_row", *SELF_NAMES)


@dataclass(frozen=True, kw_only=True, eq=False)
class Controls:
    """What B rows of one UNet call take from each other. The field names are the graph's input names.

    The edit tensors come together or not at all, but for `spatial_map`: `None` says at graph level that no row of this
    call is edited, and costs nothing. Each self-attention table may be `None` on its own: then every row uses its own.
    Whether a field is `None` or says "itself" for a row makes no difference to that row's result, not in one bit.

    edited_row:     [E] int64, the rows that are edited. One that is named twice has the same edit twice.
    source_row:     [E] int64, the row whose cross-attention maps are taken; the row itself: not edited.
    token_map:      [E, N, N] float, `token_map[e, i, j]` is the weight of source token i in target token j.
    own_weight:     [E, N] float, 1 where a token keeps its own map because it has no counterpart.
    spatial_weight: [E, N] float, weight of the row's own map at pixels where `spatial_map` is 1.
    spatial_map:    [E, P] float in [0, 1] at the map resolution; resized to each layer's. None: 1 everywhere.
    map_row:        [M] int64, the rows whose maps and features are reported; None: all.
    self_query_row, self_key_row, self_value_row: [L, B] int64, the row that self-attention layer l takes its
                    queries, keys and values from; L layers in execution order.
    """

    edited_row: Tensor | None = None
    source_row: Tensor | None = None
    token_map: Tensor | None = None
    own_weight: Tensor | None = None
    spatial_weight: Tensor | None = None
    spatial_map: Tensor | None = None
    map_row: Tensor | None = None
    self_query_row: Tensor | None = None
    self_key_row: Tensor | None = None
    self_value_row: Tensor | None = None

    @property
    def edited(self) -> bool:
        """Whether the edit tensors are there (a property of the call, not of the values in them)."""
        return self.edited_row is not None

    @classmethod
    def identity(
        cls,
        *,
        batch: int,
        tokens: int,
        pixels: int,
        layers: int,
        device: torch.device | str = "cpu",
        edits: int | None = None,
        maps: int | None = None,
    ) -> Controls:
        """All tensors present, and every row its own: plain generation for a graph with fixed inputs.

        edits, maps: E and M, by default one a row. No two fields share a tensor: an export that is shown one tensor for
        two inputs makes them one input.
        """
        rows, edits = torch.arange(batch, device=device), batch if edits is None else edits
        return cls(
            edited_row=rows[:edits].clone(),
            source_row=rows[:edits].clone(),
            token_map=torch.eye(tokens, device=device, dtype=torch.float32).repeat(edits, 1, 1),
            own_weight=torch.zeros(edits, tokens, device=device, dtype=torch.float32),
            spatial_weight=torch.zeros(edits, tokens, device=device, dtype=torch.float32),
            spatial_map=torch.ones(edits, pixels, device=device, dtype=torch.float32),
            map_row=rows[: batch if maps is None else maps].clone(),
            **{name: rows.repeat(layers, 1) for name in SELF_NAMES},
        )

    def as_dict(self) -> dict[str, Tensor]:
        """The fields that are there, by name."""
        return {name: value for name in CONTROL_NAMES if (value := getattr(self, name)) is not None}

    @classmethod
    def from_dict(cls, tensors: Mapping[str, Tensor]) -> Controls:
        """Take the controls out of a mapping that may hold other inputs too."""
        return cls(**{f.name: tensors[f.name] for f in fields(cls) if f.name in tensors})
