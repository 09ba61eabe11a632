"""One plan for everything that an edit may ask of a step, and whether two outcomes are the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler

from adapedit_engine import EditPlan, LocalBlend, Schedule
from adapedit_engine.scheduler import Passes
from tests.engine.tiny import (
    SIDE,
    STEPS,
    TEXT,
    TOKENS,
    adaptive,
    ddim,
    edit_plan,
    key_tokens,
    largest,
    noise,
    plan,
    self_share,
    tiny_unet,
)

NOISY = replace(ddim(), noise_weight=torch.full((STEPS,), 0.3, dtype=torch.float64))
KNOWN = noise(STEPS, 4, SIDE, SIDE, seed=5)
TOLD = torch.tensor([1.0, 0.8])
BY_MAPS = LocalBlend(token_weights=key_tokens().float(), threshold=0.6, start=0.4)
BY_PLACES = LocalBlend(
    token_weights=key_tokens().float(),
    start=0.3,
    grow=0,
    places=(torch.arange(2 * SIDE * SIDE).view(2, -1) % 3 == 0).float(),
)


def solver(kind: Any, **changes: Any) -> Schedule:
    return Schedule.from_scheduler(kind(**changes), 6)


def plans() -> dict[str, EditPlan]:
    """What an edit may ask of a step, each by a plan of its own."""
    shared = self_share(tiny_unet(), 0.5)
    layers = torch.ones(self_share(tiny_unet(), 0.5).shape[1], 2, dtype=torch.bool)
    return {
        "an edit": edit_plan(1, 2, collect=True, strength=TOLD),
        "self-attention of the source": edit_plan(3, 4, word_steps=0.8, self_query=shared, self_key=shared),
        "no edit": plan(5),
        "two edits of one source, shorter": edit_plan(6, 7, 8, latents_seed=9, schedule=ddim(3)),
        "longer": edit_plan(1, 9, schedule=ddim(7), collect=True),
        "a blend by maps": edit_plan(1, 2, local_blend=BY_MAPS, collect=True),
        "a blend by places": edit_plan(3, 4, local_blend=BY_PLACES),
        "a wide blend": edit_plan(3, 4, local_blend=replace(BY_MAPS, grow=2, start=0.0)),
        "the single pass": edit_plan(1, 2, adaptive=adaptive(self_layers=layers), strength=TOLD),
        "the single pass, every other step": edit_plan(
            3,
            4,
            adaptive=adaptive(update_every=2, spatial_grow=(0, 1), map_size=(SIDE, SIDE)),
            local_blend=BY_MAPS,
        ),
        "guidance that ends early": edit_plan(1, 2, guidance_until=0.5, collect=True, local_blend=BY_MAPS),
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


def alike(got: Any, wanted: Any) -> None:
    """Whether an outcome is another."""
    scale = max(1.0, float(wanted.latents.abs().max()))
    assert largest(got.latents, wanted.latents) < 1e-4 * scale
    for name in ("maps", "features", "word_steps", "spatial_map", "trajectory"):
        one, other = getattr(got, name), getattr(wanted, name)
        assert (one is None) == (other is None), name
        if one is not None:
            assert largest(one, other) < 1e-4 * max(1.0, float(other.abs().max())), name
    assert got.steps == wanted.steps


def one_pass(edit: EditPlan) -> Passes:
    (outcome,) = yield [edit]
    return outcome
