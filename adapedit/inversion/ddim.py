"""DDIM inversion: where the deterministic way back from the picture ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapedit.inversion.base import Inversion, Inverted, Passes, trajectory
from adapedit.methods.base import Context, Knob

if TYPE_CHECKING:
    from adapedit.model import EditModel


class DDIM(Inversion, name="ddim"):
    """DDIM run backwards (Song et al. 2021), under the source prompt.

    The source is then denoised under guidance like any other, and does not come back whole.

    guidance_scale: of the way back; up to 1, the conditional prediction alone, it loses least (Mokady et al. 2023).
    """

    guidance_scale: Knob = 1.0

    def passes(self, context: Context, model: EditModel, seed: int) -> Passes:
        path = yield from trajectory(context, self.guidance_scale)
        return Inverted(schedule=context.schedule, latents=path[:1])
