"""The knobs of every method as validated data; nothing here needs torch, so that the command line starts fast."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapedit_kernels.errors import AdapEditError

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Cells = Annotated[int, Field(ge=0, le=64)]
Knob = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def with_defaults(self, defaults: Mapping[str, Any]) -> Any:
        """The same with a model's own defaults for every knob that was not named."""
        open_knobs = {name: value for name, value in defaults.items() if name not in self.model_fields_set}
        return self if not open_knobs else type(self).model_validate({**self.model_dump(), **open_knobs})


Words = tuple[str, ...] | bool
"""Words of either prompt; true: those that the edit is about and what they replace; none: false or ()."""


class WordValue(_Settings):
    """A value for a word of the target prompt; `occurrence` counts from 1, None means every one of them."""

    word: str
    value: Knob
    occurrence: int | None = Field(default=None, ge=1)


class Plain(_Settings):
    """No edit at all: two prompts from one seed. The baseline that shows what a seed alone keeps."""

    name: Literal["plain"] = "plain"


class PromptToPrompt(_Settings):
    """Prompt-to-Prompt (Hertz et al. 2022): replacement, refinement and re-weighting follow from the alignment.

    cross_replace_steps: share of the trajectory in which a word's map is the source's.
    word_replace_steps:  the same for single words, over `cross_replace_steps`.
    self_replace_steps:  share in which self-attention at the coarse levels is the source's.
    local_blend:         words (of either prompt) outside whose places the source's latents are kept; true: those
                         that the edit is about.
    equalizer:           factors on words' maps.
    """

    name: Literal["prompt-to-prompt"] = "prompt-to-prompt"
    cross_replace_steps: Share = 0.8
    word_replace_steps: tuple[WordValue, ...] = ()
    self_replace_steps: Share = 0.4
    local_blend: Words = ()
    blend_threshold: Share = 0.3
    blend_start: Share = 0.2
    blend_grow: Cells = 1
    equalizer: tuple[WordValue, ...] = ()


class AdapEdit(_Settings):
    """AdapEdit (AAAI 2024): FWT frees words by their relation to the edited ones, DPS says where the edit may act.

    lambda_tau:     factor on the words' steps, Eq. 7: less frees words earlier.
    lambda_s:       weight of the target's maps after a word is freed, Eq. 8.
    lambda_spatial: factor on the spatial map, Eq. 9; above 1 (not in the paper) the map is cut off at 1.
    spatial_grow:   cells by which the spatial map is widened (not in the paper): features at a figure's edge look less
                    like it, so what is left out there stays as it was.
    spatial_grow_several: the same, if it is more, where an edit is about several words: S compares with the mean of
                    their embeddings, which no pixel looks like, and leaves out more of each.
    alpha_tau:      what of a map counts as looked at (threshold_mode "absolute": a probability, as in the paper;
                    "relative": a share of each map's peak).
    normalise, temperature, centre: how maps become weights, and whether features lose their mean over the pixels.
    variant:        "paper", or "released": the authors' code's formulas (its threshold and normalisation, no DPS).
    single_pass:    FWT and DPS from running averages of the edit itself instead of a first pass over the target.
    spatial_map:    "static", or "per-step": DPS again at every step from what has been seen.
    observed_prompts: whose pictures the first pass looks at: "target", as in the paper, or "both", at two rows a step
                    more: the spatial map is the larger of the target's and of that of what the edit is about in the
                    source, where otherwise that would stay; the local blend takes its places from that pass.
    blend_by:       of both: what says where the blend lets the target be: the maps of `local_blend`'s words, or S;
                    "auto": S where it covers more than half of the picture (a place), else the words.
    blend_difference: of both: cells in which the two prompts' latents differ by more than this (root mean square over
                    channels) belong to the words' places that they touch, unless those are half of the picture: a foot
                    of the source's figure that no word looks at would stay. None: no cell does.
    fwt, dps, mask: switches for the ablations; without FWT every word has `cross_replace_steps`.
    self_replace_steps: share for self-attention; None: what FWT gives to tokens without a word.
    local_blend:    words outside whose places the source's latents are kept, as in Prompt-to-Prompt; true: those that
                    the edit is about and what they replace. Not in the paper.
    """

    name: Literal["adapedit"] = "adapedit"
    lambda_tau: Knob = 1.0
    lambda_s: Share = 0.98
    lambda_spatial: Knob = 1.0
    spatial_grow: Cells = 0
    spatial_grow_several: Cells = 0
    alpha_tau: Share = 0.3
    threshold_mode: Literal["relative", "absolute"] = "relative"
    normalise: Literal["sum", "softmax"] = "sum"
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01
    centre: bool = True
    variant: Literal["paper", "released"] = "paper"
    single_pass: bool = False
    spatial_map: Literal["static", "per-step"] = "static"
    observed_prompts: Literal["target", "both"] = "target"
    fwt: bool = True
    dps: bool = True
    mask: bool = True
    cross_replace_steps: Share = 0.8
    self_replace_steps: Share | None = None
    local_blend: Words = ()
    blend_by: Literal["auto", "words", "spatial-map"] = "auto"
    blend_difference: Knob | None = None
    blend_threshold: Share = 0.3
    blend_start: Share = 0.2
    blend_grow: Cells = 1


class MasaCtrl(_Settings):
    """MasaCtrl (Cao et al. 2023): the target's own layout, with the looks of the source.

    start_step:  share of the trajectory after which self-attention takes keys and values from the source (4 of 50).
    start_layer: share of the decoder's self-attention layers before the first that does (layer 10 of the 16 of Stable
                 Diffusion, of which 7 to 15 are the decoder's).
    """

    name: Literal["masactrl"] = "masactrl"
    start_step: Share = 0.08
    start_layer: Share = 1 / 3


class SDEdit(_Settings):
    """SDEdit (Meng et al. 2022): the noised source picture, denoised under the target prompt.

    strength: share of the steps that are run; more moves further from the source. The paper finds 0.3 to 0.6 best.
    """

    name: Literal["sdedit"] = "sdedit"
    strength: Share = 0.6


class InstructPix2Pix(_Settings):
    """InstructPix2Pix (Brooks et al. 2023): a UNet trained for editing, which sees the source beside the noise.

    text_guidance:  s_T of the paper: more does more of what the instruction says.
    image_guidance: s_I: more stays nearer to the source.
    instruction:    what to do. None: the target prompt. Published checkpoints know commands instead ("make the dog
                    sit down"): give one, and the target prompt is used for nothing but the alignment that is told
                    with the result.
    checkpoint:     folder or hub name of the UNet; it has to be given, unless the model names one.
    """

    name: Literal["instruct-pix2pix"] = "instruct-pix2pix"
    text_guidance: Knob = 7.5
    image_guidance: Knob = 1.5
    instruction: Annotated[str, Field(min_length=1)] | None = None
    checkpoint: str | None = None


MethodSettings = Annotated[
    Plain | PromptToPrompt | AdapEdit | MasaCtrl | SDEdit | InstructPix2Pix, Field(discriminator="name")
]

METHODS: dict[str, type[_Settings]] = {
    "adapedit": AdapEdit,
    "prompt-to-prompt": PromptToPrompt,
    "masactrl": MasaCtrl,
    "sdedit": SDEdit,
    "instruct-pix2pix": InstructPix2Pix,
    "plain": Plain,
}
"""Every method by its name."""


def make_settings(name: str, **knobs: Any) -> Any:
    """Settings of the method `name`. Raises `AdapEditError` for unknown names and knobs, and for bad values."""
    if not isinstance(name, str) or name not in METHODS:
        raise AdapEditError(f"there is no method {name!r}; use one of: {', '.join(METHODS)}")
    kind = METHODS[name]
    unknown = [knob for knob in knobs if knob not in kind.model_fields or knob == "name"]
    if unknown:
        known = ", ".join(field for field in kind.model_fields if field != "name") or "none"
        raise AdapEditError(f"{name} has no knob {unknown[0]!r}; its knobs: {known}")
    try:
        return kind(**knobs)
    except ValidationError as error:
        raise AdapEditError(one_line(error)) from error


def one_line(error: ValidationError) -> str:
    """What pydantic found first, in a line: the field, what it got, what it wanted."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "request"
    if first["type"] == "missing":
        return f"{where} is missing"
    wanted = first["msg"].removeprefix("Value error, ")
    wanted = wanted[0].lower() + wanted[1:]
    return f"{where} is {reprlib.repr(first['input'])}: {wanted}"
