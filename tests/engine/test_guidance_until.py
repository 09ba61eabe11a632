"""Guidance that stops before the end: fewer rows from then on, and the prediction of the prompt alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from adapedit_engine import LocalBlend, PlanError, PyTorchRunner, denoise
from adapedit_engine.scheduler import EngineExecutor, Scheduler
from tests.engine.tiny import GUIDANCE, STEPS, TOKENS, edit_plan, largest, plan, tiny_unet


class Counting(PyTorchRunner):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.rows: list[int] = []

    def infer(self, inputs, outputs=None):
        self.rows.append(len(inputs["timestep"]))
        return super().infer(inputs, outputs)


@pytest.fixture
def runner():
    with Counting(tiny_unet(), map_divisor=1) as opened:
        yield opened


def blended(**changes):
    blend = LocalBlend(token_weights=torch.ones(2, TOKENS))
    return edit_plan(1, 2, collect=True, local_blend=blend, **changes)


def test_rows_halve_when_guidance_stops(runner):
    (outcome,) = denoise([blended(guidance_until=0.6)], runner)
    assert runner.rows == [4, 4, 4, 2, 2]
    assert outcome.steps == STEPS and outcome.maps is not None


def test_none_of_it_is_the_prompt_alone(runner):
    (never,) = denoise([blended(guidance_until=0.0)], runner)
    weights = torch.tensor([[0.0, 1.0]]).repeat(2, 1)
    (alone,) = denoise([replace(blended(), guidance_weights=weights)], runner)
    assert largest(never.latents, alone.latents) < 1e-4
    assert largest(never.maps, alone.maps) < 1e-5


def test_until_then_nothing_changes(runner):
    """Two steps of guidance and three without, against the same made of two plans."""
    (mixed,) = denoise([plan(5, guidance_until=0.4)], runner)
    schedule = plan(5).schedule

    def part(places: slice, start, weight: float):
        names = ("timesteps", "input_scale", "sample_weight", "output_weight", "noise_weight")
        cut = replace(schedule, **{name: getattr(schedule, name)[places] for name in names})
        weights = torch.tensor([[1 - weight, weight]])
        return replace(plan(5), schedule=cut, latents=start, guidance_weights=weights)

    (first,) = denoise([part(slice(0, 2), plan(5).latents, GUIDANCE)], runner)
    (second,) = denoise([part(slice(2, None), first.latents, 1.0)], runner)
    assert largest(mixed.latents, second.latents) < 1e-4


def test_the_scheduler_gives_the_rows_to_others(runner):
    scheduler = Scheduler(EngineExecutor(runner), max_rows=6)
    plans = [blended(guidance_until=0.4), plan(3), plan(4)]

    def job(wanted):
        (outcome,) = yield [wanted]
        return outcome

    tickets = [scheduler.submit(job(wanted)) for wanted in plans]
    scheduler.drain()
    assert runner.rows[:4] == [6, 6, 6, 6]
    for wanted, ticket in zip(plans, tickets, strict=True):
        (alone,) = denoise([wanted], runner)
        assert largest(ticket.future.result().latents, alone.latents) < 1e-4


def test_a_share_is_wanted():
    with pytest.raises(PlanError, match="guidance_until is 1.5"):
        plan(1, guidance_until=1.5)
