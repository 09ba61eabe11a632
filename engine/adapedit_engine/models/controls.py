"""Controls: everything an editing method can ask of one UNet call, as tensors.

Equations (R = M_source A, W = u + v S, M' = R + W (M - R)) are those of Prompt-to-Prompt (Hertz et al., 2022)
and of AdapEdit's equations 4 and 8, written so that every controller of the family is data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from adapedit_kernels.errors import AdapEditError

EDIT_NAMES = ("source_row", "token_map", "own_weight", "spatial_weight", "spatial_map")
SELF_NAMES = ("self_query_row", "self_key_row", "self_value_row")
CONTROL_NAMES = EDIT_NAMES + SELF_NAMES


class ControlError(AdapEditError):
    """Controls whose shapes, dtypes or values do not fit the UNet call they were given to."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Controls:
    """What B rows of one UNet call take from each other. The field names are the graph's input names.

    The five edit tensors come together or not at all: `None` says at graph level that no row of this call is edited,
    and costs nothing. Each self-attention table may be `None` on its own: then every row uses its own. Whether a field
    is `None` or says "itself" for a row makes no difference to that row's result, not in one bit.

    source_row:     [B] int64, the row whose cross-attention maps are taken; a row's own index: not edited.
    token_map:      [B, N, N] float, `token_map[b, i, j]` is the weight of source token i in target token j.
    own_weight:     [B, N] float, 1 where a token keeps its own map because it has no counterpart.
    spatial_weight: [B, N] float, weight of the row's own map at pixels where `spatial_map` is 1.
    spatial_map:    [B, P] float in [0, 1] at the map resolution; resized to each layer's.
    self_query_row, self_key_row, self_value_row: [L, B] int64, the row that self-attention layer l takes its
                    queries, keys and values from; L layers in execution order.
    """

    source_row: Tensor | None = None
    token_map: Tensor | None = None
    own_weight: Tensor | None = None
    spatial_weight: Tensor | None = None
    spatial_map: Tensor | None = None
    self_query_row: Tensor | None = None
    self_key_row: Tensor | None = None
    self_value_row: Tensor | None = None

    @property
    def edited(self) -> bool:
        """Whether the edit tensors are there (a property of the call, not of the values in them)."""
        return self.source_row is not None

    @classmethod
    def identity(
        cls, *, batch: int, tokens: int, pixels: int, layers: int, device: torch.device | str = "cpu"
    ) -> Controls:
        """All tensors present, and every row its own: plain generation for a graph with fixed inputs.

        No two fields share a tensor: an export that is shown one tensor for two inputs makes them one input.
        """
        rows = torch.arange(batch, device=device)
        return cls(
            source_row=rows,
            token_map=torch.eye(tokens, device=device, dtype=torch.float32).repeat(batch, 1, 1),
            own_weight=torch.zeros(batch, tokens, device=device, dtype=torch.float32),
            spatial_weight=torch.zeros(batch, tokens, device=device, dtype=torch.float32),
            spatial_map=torch.ones(batch, pixels, device=device, dtype=torch.float32),
            **{name: rows.repeat(layers, 1) for name in SELF_NAMES},
        )

    def validate(self, *, batch: int, tokens: int, pixels: int, layers: int) -> None:
        """Raise `ControlError` unless every field fits. Row numbers are checked in host memory."""
        given = [name for name in EDIT_NAMES if getattr(self, name) is not None]
        if given and len(given) != len(EDIT_NAMES):
            missing = ", ".join(name for name in EDIT_NAMES if name not in given)
            raise ControlError(f"controls lack {missing}: give all of {', '.join(EDIT_NAMES)}, or none")
        wanted = {
            "source_row": (batch,),
            "token_map": (batch, tokens, tokens),
            "own_weight": (batch, tokens),
            "spatial_weight": (batch, tokens),
            "spatial_map": (batch, pixels),
            **dict.fromkeys(SELF_NAMES, (layers, batch)),
        }
        for name, shape in wanted.items():
            value = getattr(self, name)
            if value is None:
                continue
            if tuple(value.shape) != shape:
                raise ControlError(f"{name} has shape {tuple(value.shape)}, wanted {shape} for {batch} rows")
            is_row = name == "source_row" or name in SELF_NAMES
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
