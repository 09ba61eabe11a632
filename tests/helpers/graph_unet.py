"""The UNet as a function of tensors alone."""

from __future__ import annotations

from torch import Tensor, nn

from adapedit_engine.models.controls import Controls
from adapedit_engine.models.unet import ControlledUNet


class GraphUNet(nn.Module):
    """A `ControlledUNet` as a function of tensors alone, in the order of `INPUT_NAMES`.

    Returns the three tensors of `OUTPUT_NAMES`. Trace it inside `controlled.attached()`.
    """

    def __init__(self, controlled: ControlledUNet) -> None:
        super().__init__()
        self.controlled = controlled

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        edited_row: Tensor,
        source_row: Tensor,
        token_map: Tensor,
        own_weight: Tensor,
        spatial_weight: Tensor,
        spatial_map: Tensor,
        map_row: Tensor,
        self_query_row: Tensor,
        self_key_row: Tensor,
        self_value_row: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        controls = Controls(
            edited_row=edited_row,
            source_row=source_row,
            token_map=token_map,
            own_weight=own_weight,
            spatial_weight=spatial_weight,
            spatial_map=spatial_map,
            map_row=map_row,
            self_query_row=self_query_row,
            self_key_row=self_key_row,
            self_value_row=self_value_row,
        )
        noise_pred, maps, features = self.controlled(sample, timestep, encoder_hidden_states, controls)
        return noise_pred, maps, features
