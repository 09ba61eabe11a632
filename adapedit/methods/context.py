"""What a method is given: two aligned prompts, encoded, on a schedule, with the model's facts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from adapedit.alignment import Alignment
from adapedit.images import OpenedImage
from adapedit.model import EditModel, ModelFacts
from adapedit_engine.loop import EditOutcome
from adapedit_engine.plan import EditPlan
from adapedit_engine.runners import Runner
from adapedit_engine.schedule import Schedule
from adapedit_engine.specs import ModelSpecs


@dataclass(frozen=True, kw_only=True, eq=False)
class EditContext:
    """Everything of one edit that does not depend on the method.

    latents [1, C, h, w], times the schedule's init_noise_sigma; unconditional, source, target: hidden states [N, D];
    noise [T, C, h, w] for stochastic schedules, shared by all tracks; levels [T, 2], the schedule's before each step.
    instruction: hidden states [N, D] of the method's own text, where it has one. latent_scale: see `EditModel`.

    Of a real picture: image, as the model takes it; image_latents [1, C, h, w], clean; source_latents [T, C, h, w], the
    source's after each step, and unconditional_steps [T, N, D], where an inversion gives them.
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
    feature_interval: int = 1
    cross_attention_until: float = 1.0
    latent_scale: float = 1.0
    instruction: Tensor | None = None
    image: OpenedImage | None = None
    image_latents: Tensor | None = None
    source_latents: Tensor | None = None
    unconditional_steps: Tensor | None = None

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of the maps."""
        return self.specs.map_size(*self.latents.shape[-2:])

    def plan(self, prompts: tuple[Tensor, ...], **edit: Any) -> EditPlan:
        """A plan with one track per prompt, all from the same latents, under classifier-free guidance.

        A real picture's trajectory is followed by the first track, where its prompt is `source` itself.
        """
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
            feature_interval=self.feature_interval,
            cross_attention_until=self.cross_attention_until,
            unconditional_steps=self.unconditional_steps,
            source_latents=self.source_latents if prompts[0] is self.source else None,
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
    """A method as functions of its context; it holds its settings and nothing else.

    inverts: whether it denoises the source again, so that a real picture has to be inverted for it. Other methods want
    the picture's clean latents alone; their sources are given as noised and end at the picture.
    """

    inverts: ClassVar[bool] = True

    def runner(self, model: EditModel) -> Runner | None:
        """What runs `plan`, where that is not the model's own UNet. Raises `ModelError` where it can't be had."""
        return None

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
