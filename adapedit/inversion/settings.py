"""The knobs of every inversion as validated data; nothing here needs torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from adapedit.methods.settings import Knob, Share, one_line
from adapedit_kernels.errors import AdapEditError


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DDIM(_Settings):
    """DDIM run backwards (Song et al. 2021), under the source prompt.

    guidance_scale: of the way back; 1, the conditional prediction alone, loses least (Mokady et al. 2023).
    """

    name: Literal["ddim"] = "ddim"
    guidance_scale: Knob = 1.0


class NullText(_Settings):
    """Null-text inversion (Mokady et al. 2023): the empty prompt of each step is optimised until guidance leads back.

    inner_steps:   of Adam at each denoising step, at most.
    learning_rate: of Adam at the first step; it falls linearly to half of that.
    early_stop:    mean squared distance of the latents at which a step is good enough; it rises with the steps.
    cache:         folder of finished inversions; None: in the user's cache folder; "off": none. It does not change
                   what comes out and is not written down.
    """

    name: Literal["null-text"] = "null-text"
    inner_steps: Annotated[int, Field(ge=1, le=1000)] = 10
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01
    early_stop: Knob = 1e-5
    cache: str | None = Field(default=None, exclude=True)


class Direct(_Settings):
    """Direct inversion (Ju et al. 2024): the source is put back on its trajectory after every step; no optimisation.

    targets: share of the source's correction that targets get as well. 0 is the paper's; at 1 an edit that changes
             nothing gives the picture back.
    """

    name: Literal["direct"] = "direct"
    targets: Share = 0.0


class EditFriendly(_Settings):
    """Edit-friendly DDPM noise (Huberman-Spiegelglas et al. 2024): the picture noised independently for each step.

    eta:  of DDIM's stochastic form, 1 is DDPM. Schedulers that add noise themselves are taken as they are.
    skip: share of the steps that are left out at the noisy end: the edit begins nearer to the picture.
    """

    name: Literal["edit-friendly"] = "edit-friendly"
    eta: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    skip: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.36


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


InversionSettings = Annotated[
    Annotated[DDIM | NullText | Direct | EditFriendly, Field(discriminator="name")], BeforeValidator(_named)
]
"""Settings, or an inversion's name alone."""

INVERSIONS: dict[str, type[_Settings]] = {
    "ddim": DDIM,
    "null-text": NullText,
    "direct": Direct,
    "edit-friendly": EditFriendly,
}
"""Every inversion by its name."""


def make_inversion_settings(name: str, **knobs: Any) -> Any:
    """Settings of the inversion `name`. Raises `AdapEditError` for unknown names and knobs, and for bad values."""
    if name not in INVERSIONS:
        raise AdapEditError(f"there is no inversion {name!r}; use one of: {', '.join(INVERSIONS)}")
    kind = INVERSIONS[name]
    unknown = [knob for knob in knobs if knob not in kind.model_fields or knob == "name"]
    if unknown:
        known = ", ".join(field for field in kind.model_fields if field != "name")
        raise AdapEditError(f"inversion {name} has no knob {unknown[0]!r}; its knobs: {known}")
    try:
        return kind(**knobs)
    except ValidationError as error:
        raise AdapEditError(one_line(error)) from error
