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

from adapedit_kernels.errors import AdapEditError

EDIT_NAMES = ("edited_row", "source_row", "token_map", "own_weight", "spatial_weight", "spatial_map")
SELF_NAMES = ("self_query_row", "self_key_row", "self_value_row")
CONTROL_NAMES = (*EDIT_NAMES, "map_row", *SELF_NAMES)


class ControlError(AdapEditError):
    """Controls whose shapes, dtypes or values do not fit the UNet call they were given to."""


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

    def validate(self, *, batch: int, tokens: int, pixels: int, layers: int) -> None:
        """Raise `ControlError` unless every field fits. Row numbers are checked in host memory."""
        needed = EDIT_NAMES[:-1]
        missing = [name for name in needed if getattr(self, name) is None]
        if missing and any(getattr(self, name) is not None for name in EDIT_NAMES):
            raise ControlError(
                f"controls lack {', '.join(missing)}: give all of {', '.join(needed)}, or none"
            )
        edits = 0 if self.edited_row is None else self.edited_row.numel()
        wanted = {
            "edited_row": (edits,),
            "source_row": (edits,),
            "token_map": (edits, tokens, tokens),
            "own_weight": (edits, tokens),
            "spatial_weight": (edits, tokens),
            "spatial_map": (edits, pixels),
            "map_row": (0 if self.map_row is None else self.map_row.numel(),),
            **dict.fromkeys(SELF_NAMES, (layers, batch)),
        }
        for name, shape in wanted.items():
            value = getattr(self, name)
            if value is None:
                continue
            if tuple(value.shape) != shape:
                raise ControlError(
                    f"{name} has shape {tuple(value.shape)}, wanted {shape} for {edits} edits of {batch} rows"
                )
            is_row = name.endswith("_row")
            if is_row and value.dtype != torch.int64:
                raise ControlError(f"{name} is {value.dtype}, wanted torch.int64: row numbers")
            if not is_row and not value.is_floating_point():
                raise ControlError(f"{name} is {value.dtype}, wanted a floating-point dtype")
            if is_row and value.device.type == "cpu" and value.numel() and not _within(value, batch):
                raise ControlError(f"{name} names a row outside 0..{batch - 1}")

    def as_dict(self) -> dict[str, Tensor]:
        """The fields that are there, by name."""
        return {name: value for name in CONTROL_NAMES if (value := getattr(self, name)) is not None}

    @classmethod
    def from_dict(cls, tensors: Mapping[str, Tensor]) -> Controls:
        """Take the controls out of a mapping that may hold other inputs too."""
        return cls(**{f.name: tensors[f.name] for f in fields(cls) if f.name in tensors})


def _within(rows: Tensor, batch: int) -> bool:
    low, high = torch.aminmax(rows)
    return int(low) >= 0 and int(high) < batch
