"""What a method is given: two aligned prompts, encoded, on a schedule, with the model's facts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from adapedit.alignment import Alignment
from adapedit.model import ModelFacts
from adapedit_engine.loop import EditOutcome
from adapedit_engine.plan import EditPlan
from adapedit_engine.schedule import Schedule
from adapedit_engine.specs import ModelSpecs


@dataclass(frozen=True, kw_only=True, eq=False)
class EditContext:
    """Everything of one edit that does not depend on the method.

    latents [1, C, h, w], times the schedule's init_noise_sigma; unconditional, source, target: hidden states [N, D];
    noise [T, C, h, w] for stochastic schedules, shared by all tracks; levels [T, 2], see `noise_levels`.
    """

    alignment: Alignment
    facts: ModelFacts
    specs: ModelSpecs
    schedule: Schedule
    guidance_scale: float
    latents: Tensor
    unconditional: Tensor
    source: Tensor
    target: Tensor
    levels: Tensor
    noise: Tensor | None = None
    guidance_until: float = 1.0

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of the maps."""
        return self.specs.map_size(*self.latents.shape[-2:])

    def plan(self, prompts: tuple[Tensor, ...], **edit: Any) -> EditPlan:
        """A plan with one track per prompt, all from the same latents, under classifier-free guidance."""
        tracks = len(prompts)
        weights = torch.tensor([1 - self.guidance_scale, self.guidance_scale])
        return EditPlan(
            schedule=self.schedule,
            latents=self.latents.expand(tracks, -1, -1, -1).clone(),
            encoder_hidden_states=torch.stack(
                [torch.stack([self.unconditional, prompt]) for prompt in prompts]
            ),
            guidance_weights=weights.expand(tracks, 2).clone(),
            noise=self.noise,
            guidance_until=self.guidance_until,
            **edit,
        )

    def on_target(self, value: Tensor, source: Tensor | None = None) -> Tensor:
        """Stack a target track's tensor behind the source's, which is zero where nothing reads it."""
        return torch.stack([torch.zeros_like(value) if source is None else source, value])

    def coarse_layers(self) -> Tensor:
        """[L] bool, self-attention layers whose side is at most 1/self_divisor of the latents'."""
        return torch.tensor([2**layer.level >= self.facts.self_divisor for layer in self.specs.self_layers])

    def self_table(self, share: float) -> Tensor:
        """[T, L, 2] bool: the target takes from the source in coarse layers, for the first `share` of the steps."""
        steps = len(self.schedule)
        early = torch.arange(steps) < share * steps - 1e-4
        table = torch.zeros(steps, len(self.specs.self_layers), 2, dtype=torch.bool)
        table[:, :, 1] = early[:, None] & self.coarse_layers()
        return table


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """What the method found about the words: relation and word_steps [N] per target token; spatial_map [P]."""

    word_steps: Tensor | None = None
    relation: Tensor | None = None
    spatial_map: Tensor | None = None
    warnings: tuple[str, ...] = ()


class Method(Protocol):
    """A method as functions of its context; it holds its settings and nothing else."""

    def observe(self, context: EditContext) -> EditPlan | None:
        """A pass to run before the edit, whose outcome `plan` wants; None where there is none."""
        return None

    def plan(self, context: EditContext, observed: EditOutcome | None) -> EditPlan:
        """The edit: track 0 is the source, track 1 the target, unless `finish` makes them of what it gives.

        Called with None for `observed` first, for all that does not depend on it.
        """
        ...

    def finish(self, context: EditContext, observed: EditOutcome | None, edited: EditOutcome) -> EditOutcome:
        """The outcome with the source first and the target second."""
        return edited

    def findings(self, context: EditContext, observed: EditOutcome | None, edited: EditOutcome) -> Findings:
        """What to tell of the words once the edit is done."""
        ...
