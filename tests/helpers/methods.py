"""What methods are given and what they plan, and what a plan tells the model at each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adapedit import AdapEditPipeline, EditRequest
from adapedit.edit import complete, make_context
from adapedit.methods.base import Context
from adapedit.sharing import Caches
from adapedit_engine.batch import Batch
from adapedit_engine.plan import EditOutcome, EditPlan
from adapedit_engine.scheduler import denoise


def context_of(pipe: AdapEditPipeline, asked: EditRequest) -> tuple[Context, Any]:
    """The context of a request before any pass, and its method with the model's own knobs."""
    done = complete(asked, pipe.model)
    return make_context(done, pipe.model, Caches.of(pipe.model.runner)), done.method


def plan_of(pipe: AdapEditPipeline, asked: EditRequest, observed: EditOutcome | None = None) -> EditPlan:
    context, method = context_of(pipe, asked)
    return method.plan(context, observed)


def run(pipe: AdapEditPipeline, plans: Sequence[EditPlan]) -> list[EditOutcome]:
    with pipe.model.runner as runner:
        return denoise(plans, runner)


def inputs_at(pipe: AdapEditPipeline, plan: EditPlan, step: int) -> dict[str, Tensor]:
    """The model's inputs at a step, as if all before had been run."""
    with pipe.model.runner as runner, torch.inference_mode():
        batch = Batch(runner, plan.rows)
        seat = batch.join(plan)
        seat.step = step
        batch.tracks["step"].fill_(step)
        return {name: value.clone() for name, value in batch.call([seat]).inputs().items()}


def edited_maps(inputs: dict[str, Tensor], query: Tensor, key: Tensor) -> Tensor:
    """Maps [B, P, N] that rows are given by these controls. query [B, P, d], key [B, N, d]."""
    from adapedit_kernels import edited_attention, prepare_values

    # With the unit matrix for values, attention returns its probabilities.
    value, spatial_map = torch.eye(key.shape[1]).expand(len(key), -1, -1), inputs.get("spatial_map")
    names = ("edited_row", "token_map", "own_weight", "spatial_weight")
    prepared = prepare_values(value, **{n: inputs[n] for n in names}, spatial=spatial_map is not None)
    rows = {name: inputs[name] for name in ("edited_row", "source_row")}
    return edited_attention(query, key, value, heads=1, **rows, prepared=prepared, spatial_map=spatial_map)
