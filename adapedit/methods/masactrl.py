"""MasaCtrl as data: the target keeps its own layout and takes what things look like from the source."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from adapedit.methods.context import EditContext, Findings, Method
from adapedit.methods.settings import MasaCtrl
from adapedit_engine.loop import EditOutcome
from adapedit_engine.plan import EditPlan


@dataclass(frozen=True)
class MasaCtrlMethod(Method):
    """Mutual self-attention (Cao et al. 2023): queries of the target, keys and values of the source.

    It acts in the decoder's self-attention, from a step and a layer on, and in all guidance rows, each taking from
    its like. Cross-attention is the target's own. The paper's defaults, step 4 of 50 and layer 10 of the 16 of Stable
    Diffusion, are shares here: of the trajectory, and of the decoder's layers (7 to 15 there, so a third is passed).
    """

    settings: MasaCtrl

    def plan(self, context: EditContext, observed: EditOutcome | None) -> EditPlan:
        tokens = context.alignment.num_tokens
        taken = self._table(context)
        return context.plan(
            (context.source, context.target),
            source_track=(0, 0),
            token_map=torch.zeros(2, tokens, tokens),
            own_weight=torch.ones(2, tokens),
            word_steps=torch.zeros(2, tokens),
            self_key=taken,
            self_value=taken,
            self_all_rows=torch.tensor([False, True]),
            collect=True,
        )

    def findings(self, context: EditContext, observed: EditOutcome | None, edited: EditOutcome) -> Findings:
        return Findings()

    def _table(self, context: EditContext) -> torch.Tensor:
        """[T, L, 2] bool: late enough a step, and deep enough in the decoder."""
        steps = len(context.schedule)
        late = torch.arange(steps) >= round(self.settings.start_step * steps)
        layers = context.specs.self_layers
        decoder = [place for place, layer in enumerate(layers) if layer.place == "up"]
        deep = torch.zeros(len(layers), dtype=torch.bool)
        deep[decoder[round(self.settings.start_layer * len(decoder)) :]] = True
        table = torch.zeros(steps, len(layers), 2, dtype=torch.bool)
        table[:, :, 1] = late[:, None] & deep
        return table
