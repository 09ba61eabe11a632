"""One plan for everything that an edit may ask of a step, and whether two outcomes are the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler

from adapedit_engine.plan import EditOutcome, EditPlan, SelfEdit
from adapedit_engine.schedule import Schedule
from tests.engine.tiny import (
    SIDE,
    STEPS,
    TEXT,
    TOKENS,
    adaptive,
    blend,
    ddim,
    edit_plan,
    largest,
    noise,
    plan,
    self_interval,
    tiny_unet,
)

NOISY = replace(ddim(), noise_weight=torch.full((STEPS,), 0.3, dtype=torch.float64))
KNOWN = noise(STEPS, 4, SIDE, SIDE, seed=5)
TOLD = {"strength": torch.tensor([1.0, 0.8])}
BY_MAPS: dict[str, Any] = {"threshold": 0.6, "start": 0.4}
BY_PLACES = blend(
    start=0.3,
    grow=0,
    known=torch.tensor([False, True]),
    places=(torch.arange(2 * SIDE * SIDE).view(2, -1) % 3 == 0).float().cummax(0).values,
)

MASK = torch.stack([torch.ones(SIDE, SIDE), (torch.arange(SIDE * SIDE).view(SIDE, SIDE) % SIDE > 2).float()])
"""Of cells; the maps are as large."""


def solver(kind: Any, **changes: Any) -> Schedule:
    return Schedule.from_scheduler(kind(**changes), 6)


def plans() -> dict[str, EditPlan]:
    """What an edit may ask of a step, each by a plan of its own."""
    shared = self_interval(tiny_unet(), 0.5)
    layers = torch.ones(shared.shape[:2], dtype=torch.bool)
    none = torch.zeros_like(layers)
    late = torch.tensor([2, STEPS]).expand_as(shared)
    return {
        "an edit": edit_plan(1, 2, collect=True, cross=TOLD),
        "self-attention of the source": edit_plan(
            3, 4, word_steps=0.8, self_attention=SelfEdit(query=shared, key=shared)
        ),
        "keys and values of the source, late": edit_plan(
            3, 4, self_attention=SelfEdit(key=late, value=late, all_rows=torch.tensor([False, True]))
        ),
        "no edit": plan(5),
        "two edits of one source, shorter": edit_plan(6, 7, 8, latents_seed=9, schedule=ddim(3)),
        "longer": edit_plan(1, 9, schedule=ddim(7), collect=True),
        "a blend by maps": edit_plan(1, 2, local_blend=blend(**BY_MAPS), collect=True),
        "a blend by places": edit_plan(3, 4, local_blend=BY_PLACES),
        "a wide blend": edit_plan(3, 4, local_blend=blend(threshold=0.6, grow=2, start=0.0)),
        "a mask alone": edit_plan(3, 4, local_blend=blend(start=2.0, mask=MASK)),
        "a mask, a blend and S within it": edit_plan(
            1,
            2,
            adaptive=adaptive(self_layers=none, limit=MASK.flatten(1)),
            local_blend=blend(**BY_MAPS, mask=MASK),
        ),
        "the single pass": edit_plan(1, 2, adaptive=adaptive(self_layers=layers), cross=TOLD),
        "the single pass, S of both and wide": edit_plan(
            3,
            4,
            adaptive=adaptive(self_layers=none, joined=True, grow=torch.tensor([0, 1]), lambda_spatial=2.0),
            local_blend=blend(**BY_MAPS),
        ),
        "guidance that ends early": edit_plan(
            1, 2, guidance_until=0.5, collect=True, local_blend=blend(**BY_MAPS)
        ),
        "noise": plan(1, 2, schedule=NOISY, noise=noise(STEPS, 4, SIDE, SIDE, seed=8)),
        "known latents": edit_plan(1, 2, source_latents=KNOWN, record=True),
        "known latents and noise": plan(
            1, 2, schedule=NOISY, noise=noise(STEPS, 4, SIDE, SIDE, seed=8), source_latents=KNOWN
        ),
        "other empty prompts at each step": edit_plan(
            1, 2, unconditional_steps=noise(STEPS, TOKENS, TEXT, seed=6), record=True
        ),
        "a solver that looks back": edit_plan(1, 2, schedule=solver(DPMSolverMultistepScheduler)),
        "a solver that looks back and adds noise": plan(
            5,
            schedule=solver(DPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++"),
            noise=noise(6, 4, SIDE, SIDE, seed=6),
        ),
        "a schedule that scales": edit_plan(1, 2, schedule=solver(EulerDiscreteScheduler)),
    }


def alike(got: EditOutcome, wanted: EditOutcome) -> None:
    """Whether an outcome is another."""
    scale = max(1.0, float(wanted.latents.abs().max()))
    assert largest(got.latents, wanted.latents) < 1e-4 * scale
    for name in ("maps", "features", "word_steps", "spatial_map", "trajectory"):
        one, other = getattr(got, name), getattr(wanted, name)
        assert (one is None) == (other is None), name
        if one is not None:
            assert largest(one, other) < 1e-4 * max(1.0, float(other.abs().max())), name
    assert got.steps == wanted.steps
