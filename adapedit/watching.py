"""What is done between the steps of edits' last passes: previews, and callbacks that may change latents or end an edit.

There is one hook between steps, `Ticket.watch`, and this is what hangs on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from adapedit.edit import Edit, LastPasses, picture_of
from adapedit.model import EditModel
from adapedit_engine.plan import EditPlan
from adapedit_engine.schedule import Schedule

Preview = Callable[[int, Image.Image], None]
"""Called with the number of steps done and a small picture of the target, as far as can be told by then."""
StepEnd = Callable[[int, float, Tensor], Tensor | None]
"""Called with a step's place, its timestep and the latents [K, C, h, w] after it; what it returns takes their place.

Raising `Enough` ends the edit with the latents that it has.
"""

PREVIEW_CELLS = 32
"""Of the latents' longer side in a preview, so that decoding it costs little beside a step."""


@dataclass(kw_only=True, eq=False)
class Watching:
    """The hook of a job: what its edits want to be told.

    edits, previews: of the job, one each; last: filled by `passes`. begin: what runs a preview's decoding; by default
    at once. step_end: of jobs of one edit. progress: called after every step of every pass.
    """

    model: EditModel
    edits: Sequence[Edit]
    previews: Sequence[Preview | None] = ()
    last: LastPasses = field(default_factory=dict)
    begin: Callable[..., Any] = lambda function, *arguments: function(*arguments)
    step_end: StepEnd | None = None
    progress: Callable[[], None] | None = None
    _before: dict[int, Tensor] = field(default_factory=dict)

    @property
    def wanted(self) -> bool:
        """Whether anybody wants to be told."""
        asked = (self.step_end, self.progress, *self.previews)
        return any(one is not None for one in asked)

    def __call__(self, plan: EditPlan, step: int, latents: Tensor) -> Tensor | None:
        """See `Watch` of the scheduler."""
        if self.progress is not None:
            self.progress()
        edits = self.last.get(id(plan))
        if edits is None:
            return None
        due = [(place, tracks) for place, tracks in edits if self._is_due(place, step)]
        if due:
            before = self._before.get(id(plan), plan.latents.to(latents))
            clean = predicted_clean(plan.schedule, step, before, latents)
            for place, tracks in due:
                # To the host at once: who decodes it may do so on another stream, and later.
                self.begin(self._show, place, step, clean[tracks[-1]].cpu())
        if any(preview is not None for preview in self.previews):
            self._before[id(plan)] = latents
        if self.step_end is None:
            return None
        return self.step_end(step - 1, float(plan.schedule.timesteps[step - 1]), latents)

    def _is_due(self, place: int, step: int) -> bool:
        every = self.edits[place].request.preview_every
        asked = bool(self.previews) and self.previews[place] is not None
        return asked and every is not None and step % every == 0

    def _show(self, place: int, step: int, clean: Tensor) -> None:
        preview = self.previews[place]
        assert preview is not None
        preview(step, small_picture(clean, self.model))


def predicted_clean(schedule: Schedule, step: int, before: Tensor, after: Tensor) -> Tensor:
    """The picture that a step was on its way to, in latents: what it and the one before have in common but noise.

    Both are `signal x + noise e` at their levels with one x and e, which is so of steps without noise of their own, and
    nearly so of others. before, after: latents [K, C, h, w]; step: how many are done, from 1.
    """
    (signal, noise), (next_signal, next_noise) = schedule.levels[step - 1 : step + 1].tolist()
    return (noise * after - next_noise * before) / (noise * next_signal - next_noise * signal)


def small_picture(latents: Tensor, model: EditModel) -> Image.Image:
    """Latents [C, h, w] as a picture of which no side is longer than `PREVIEW_CELLS` cells, decoded at that size.

    A bundle's decoder takes one size alone: there it is made small afterwards.
    """
    height, width = latents.shape[1:]
    scale = min(1.0, PREVIEW_CELLS / max(height, width))
    sides = max(1, round(height * scale)), max(1, round(width * scale))
    if model.any_size:
        return picture_of(F.interpolate(latents[None], sides, mode="area")[0], model)
    picture = picture_of(latents, model)
    picture.thumbnail((sides[1] * model.vae_factor, sides[0] * model.vae_factor))
    return picture
