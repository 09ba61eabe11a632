"""MasaCtrl as data: the target keeps its own layout and takes what things look like from the source."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapedit.methods.base import Context, Method, Share

if TYPE_CHECKING:
    from adapedit_engine.plan import EditOutcome, EditPlan


class MasaCtrl(Method, name="masactrl"):
    """MasaCtrl (Cao et al. 2023): the target's own layout, with the looks of the source.

    Mutual self-attention: queries of the target, keys and values of the source, in the decoder and in all guidance
    rows, each taking from its like. Cross-attention is the target's own.

    start_step:  share of the trajectory after which self-attention takes keys and values from the source (4 of 50).
    start_layer: share of the decoder's self-attention layers before the first that does (layer 10 of the 16 of Stable
                 Diffusion, of which 7 to 15 are the decoder's).
    """

    start_step: Share = 0.08
    start_layer: Share = 1 / 3

    def plan(self, context: Context, observed: EditOutcome | None) -> EditPlan:
        import torch

        from adapedit_engine.plan import SelfEdit

        decoder = torch.tensor([layer.place == "up" for layer in context.specs.self_layers], device="cpu")
        passed = round(self.start_layer * int(decoder.sum()))
        taken = context.from_source(decoder & (decoder.cumsum(0) > passed), self.start_step)
        every_row = torch.tensor([False, True], device="cpu")
        return context.plan(self_attention=SelfEdit(key=taken, value=taken, all_rows=every_row))
