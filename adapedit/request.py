"""EditRequest: everything that an edit depends on, as validated data that can be written down and repeated.

And what else people hand over, checked where it comes in.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from adapedit.images import ImageError, ImageField, ImageInput, MaskField, MaskInput, PictureFile
from adapedit.inversion import InversionSettings
from adapedit.methods import MethodSettings, make_settings, one_line
from adapedit.methods.base import Settings, whole_error
from adapedit.prompts.tokens import MAX_CHUNKS
from adapedit.prompts.weights import read_weights
from adapedit_kernels.errors import AdapEditError

UNSUPPORTED = {
    **dict.fromkeys(
        ("cross_attention_until", "feature_interval"), "num_inference_steps=20 with solver='dpm++'"
    ),
    **dict.fromkeys(("prompt", "prompt_embeds"), "source_prompt and target_prompt"),
    "negative_prompt_embeds": "negative_prompt",
    "negative_prompt_2": "negative_prompt, which all text encoders read",
    "prompt_2": "source_prompt and target_prompt, which all text encoders read",
    **dict.fromkeys(
        ("num_images_per_prompt", "num_images", "seeds"),
        "a request for each seed, or seeds in a call of the pipeline",
    ),
    "strength": "method='sdedit' with strength",
    "word_steps": "method='adapedit' with word_steps",
    "image_guidance_scale": "method='instruct-pix2pix' with image_guidance",
    **dict.fromkeys(("mask_image", "masked_image_latents", "padding_mask_crop"), "mask"),
    "callback_steps": "callback(done, total), or callback_on_step_end",
    "output_type": "the result's pictures, numpy.asarray of them, or its latents",
    "return_dict": "the result's source_image and target_image",
    "callback_on_step_end_tensor_inputs": "callback_on_step_end, which is given latents alone",
    **dict.fromkeys(("latents", "generators"), "seed or generator"),
    **dict.fromkeys(("timesteps", "sigmas", "eta"), "num_inference_steps, and a scheduler of your choice"),
    "cross_attention_kwargs": "a checkpoint whose LoRA was merged at its scale, by fuse_lora(lora_scale=...)",
    **dict.fromkeys(("ip_adapter_image", "controlnet"), "method with its knobs"),
    **dict.fromkeys(("guidance_rescale", "clip_skip"), "guidance_scale"),
    **dict.fromkeys(
        ("negative_original_size", "negative_crops_coords_top_left", "negative_target_size"),
        "original_size, crops_coords_top_left and target_size, which all rows are told",
    ),
}
"""Names of diffusers' pipelines and of earlier versions, and what to use instead."""


def refuse_names(names: Iterable[str], unsupported: Mapping[str, str] = UNSUPPORTED) -> None:
    """Raise for the first name that others use for what is done, or is not done, otherwise here."""
    for name in names:
        if name in unsupported:
            raise AdapEditError(f"{name} is not supported, use {unsupported[name]}")


def _single(prompt: Any) -> Any:
    """The prompt of a list of one."""
    return prompt[0] if isinstance(prompt, (list, tuple)) and len(prompt) == 1 else prompt


def _not_empty(prompt: str) -> str:
    if not prompt.strip():
        raise ValueError("it is empty; describe the picture in a few words")
    return prompt


def _text(prompt: Any) -> Any:
    prompt = _single(prompt)
    if prompt is not None and not isinstance(prompt, str):
        raise ValueError("a text was wanted")
    return prompt


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number was wanted")
    return value


Prompt = Annotated[str, BeforeValidator(_single), AfterValidator(_not_empty)]
Negative = Annotated[str | None, BeforeValidator(_text)]
Number = BeforeValidator(_no_truth)
Side = Annotated[int, Field(ge=8, le=4096), Number]
Pixels = Annotated[int, Field(ge=0, le=65_536), Number]
Pair = Annotated[tuple[Pixels, Pixels], Field(strict=False)]


PICTURES: dict[str, type[PictureFile]] = {"image": ImageInput, "mask": MaskInput}
"""Fields that are pictures."""


class EditRequest(BaseModel):
    """One edit.

    source_prompt, target_prompt: what the picture shows, and what it shall show.
    prompt_weights:      read `(word:1.3)`, `(word)` and `[word]` in the target prompt as weights, which become the
                         method's `equalizer`; False: they are words.
    negative_prompt:     what neither picture shall show: it stands in guidance where else the empty prompt does.
    source_negative_prompt, target_negative_prompt: the same of one picture alone; None: `negative_prompt`.
    seed:                of the first latents, shared by source and target.
    num_inference_steps: T.
    max_embeddings_multiples: how often the 77 tokens of a text encoder a prompt may have, in chunks of that many.
    guidance_scale:      of classifier-free guidance; None: what suits the model (7.5 for Stable Diffusion).
    height, width:       pixels, at most 4096; None: what the model was trained for.
    original_size, crops_coords_top_left, target_size: of SDXL, what it is told of the picture besides, height or top
                         first, as in diffusers; None: whole, and of the size asked for.
    method:              the editing method with its knobs.
    guidance_until:      share of the trajectory after which guidance is skipped: an approximation that saves half
                         of the later steps; 1: never.
    solver:              "model": the model's scheduler; "dpm++": DPM-Solver++(2M), for fewer steps.
    image:               a real picture to edit: a path, a `PIL.Image`, an array or {"file": ..., "fit": ...}, see
                         `ImageInput`; None: the source prompt's own.
    mask:                where the picture may change: white may, black stays as it is; of the picture's own size, and
                         given as one, see `MaskInput`; None: wherever the edit leads. A real picture comes back at its
                         own size then, and bit for bit the same where the mask is black.
    inversion:           what leads back to it, by name or with knobs; None: "direct" where the method wants one.
    preview_every:       steps from one preview of the target to the next, for whoever asks to be shown; it changes
                         nothing of the pictures.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source_prompt: Prompt
    target_prompt: Prompt
    prompt_weights: bool = False
    negative_prompt: Negative = None
    source_negative_prompt: Negative = None
    target_negative_prompt: Negative = None
    seed: Annotated[int, Field(ge=0, lt=2**63), Number] = 0
    num_inference_steps: Annotated[int, Field(ge=1, le=1000), Number] = 50
    max_embeddings_multiples: Annotated[int, Field(ge=1, le=MAX_CHUNKS), Number] = 1
    guidance_scale: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False), Number] | None = None
    height: Side | None = None
    width: Side | None = None
    original_size: Pair | None = None
    crops_coords_top_left: Pair | None = None
    target_size: Pair | None = None
    method: MethodSettings = Field(default_factory=lambda: make_settings("adapedit"))
    guidance_until: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), Number] = 1.0
    solver: Literal["model", "dpm++"] = "model"
    image: ImageField | None = None
    mask: MaskField | None = None
    inversion: InversionSettings | None = None
    preview_every: Annotated[int, Field(ge=1, le=1000), Number] | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_weights(cls, values: Any) -> Any:
        """The target without its weights, and the method with them: from there on there is nothing to be read."""
        if not isinstance(values, Mapping) or values.get("prompt_weights") is not True:
            return values
        prompts = [_single(values.get(name)) for name in ("source_prompt", "target_prompt")]
        if not all(isinstance(prompt, str) for prompt in prompts):
            return values
        source, target = map(read_weights, prompts)
        if source.factors:
            raise whole_error(
                f"the source prompt weights {source.factors[0].word!r}; weights are of the target: write the word alone"
            )
        method = values.get("method", "adapedit")
        if isinstance(method, str):
            method = make_settings(method)
        elif isinstance(method, Mapping):
            method = make_settings(method.get("name", ""), **{k: v for k, v in method.items() if k != "name"})
        if target.factors:
            if not hasattr(method, "equalizer"):
                name = getattr(method, "name", method)
                raise whole_error(
                    f"prompt_weights become an equalizer, which {name} has not; use method='prompt-to-prompt'"
                )
            if method.equalizer:
                raise whole_error("got weights in the target prompt and an equalizer; give one of them")
            method = method.model_copy(update={"equalizer": target.factors})
        texts = {"source_prompt": source.text, "target_prompt": target.text}
        return {**values, **texts, "prompt_weights": False, "method": method}

    @model_validator(mode="after")
    def _inverts_something(self) -> EditRequest:
        if self.inversion is not None and self.image is None:
            raise ValueError(f"inversion {self.inversion.name!r} wants a picture; give one as image")
        return self

    @classmethod
    def make(cls, /, **fields: Any) -> EditRequest:
        """The request, or an `AdapEditError` that says in one line which field is wrong and what was wanted.

        method: settings, or the name of a method for its defaults.
        """
        refuse_names(fields)
        if isinstance(fields.get("method"), str):
            fields["method"] = make_settings(fields["method"])
        try:
            return cls(**fields)
        except ValidationError as error:
            raise AdapEditError(one_line(error)) from error

    @classmethod
    def from_wire(cls, json: Mapping[str, Any], files: Mapping[str, bytes]) -> EditRequest:
        """The request of a stranger: opens no path, and tells of none whether it is there.

        json: the fields. image, mask: a name in `files`, or {"file": that name, "fit": ...}; files: what came with it,
        by name. Raises `AdapEditError`, also for settings that name a folder.
        """
        if not isinstance(json, Mapping):
            raise AdapEditError(
                f"got {reprlib.repr(json)}, wanted an object with source_prompt and target_prompt"
            )
        fields = dict(json)
        for field, kind in PICTURES.items():
            given = fields.get(field)
            if given is None:
                continue
            given = dict(given) if isinstance(given, Mapping) else {"file": given}
            name = given.pop("file", None)
            if not isinstance(name, str) or name not in files:
                raise ImageError(
                    f"{field} is {reprlib.repr(name)}, wanted the name of a picture sent with the request"
                )
            try:
                fields[field] = kind.of_bytes(files[name], name, **given)
            except ValidationError as error:
                raise ImageError(f"{field}.{one_line(error)}") from error
        request = cls.make(**fields)
        cache = getattr(request.inversion, "cache", None)
        if cache not in (None, "off"):
            raise AdapEditError(
                f"cache is {reprlib.repr(cache)}, which a request may not choose; leave it out"
            )
        return request

    def to_wire(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """What `from_wire` makes the same of: the fields that were named, as JSON, and pictures' files by name."""
        fields, files = self.model_dump(mode="json", exclude_unset=True), {}
        for name, value in self:
            if isinstance(value, PictureFile):
                files[name] = value.read()[1]
                fields[name] = {**value.model_dump(exclude={"sha256", "digest"}), "file": name}
            elif isinstance(value, Settings) and name in fields:
                fields[name]["name"] = value.name  # its kind's default, by which kinds are told apart
        return fields, files

    @classmethod
    def read(cls, path: str | Path) -> EditRequest:
        """The request of an edit.json that `EditResult.save` wrote, or of the folder that it is in.

        Raises `AdapEditError` where there is none, or one that says something else.
        """
        try:
            path = Path(path)
            path = path / "edit.json" if path.is_dir() else path
            fields = dict(json.loads(path.read_text(encoding="utf-8"))["request"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise AdapEditError(
                f"{path} is no edit.json ({error}); give a folder that an edit was saved in"
            ) from error
        request = cls.make(**fields)
        pictures = {field: getattr(request, field) for field in PICTURES}
        found = {field: one.beside(path.parent) for field, one in pictures.items() if one is not None}
        return request.model_copy(update=found)


def same_request(stored: Mapping[str, Any], request: EditRequest) -> bool:
    """Whether what an edit.json holds is of this request, completed by the same model.

    By what both mean: of a picture its pixels count, not the file. Raises `ImageError` where its file can't be read.
    """
    try:
        earlier = EditRequest.make(**stored["request"])
    except (AdapEditError, KeyError, TypeError):
        return False
    return _meaning(earlier) == _meaning(request)


def _meaning(request: EditRequest) -> dict[str, Any]:
    meant = request.model_dump(mode="json", exclude={*PICTURES, "preview_every"})
    for field in PICTURES:
        picture = getattr(request, field)
        if picture is not None:
            known = picture if picture.digest is not None else picture.read()[0]
            meant[field] = known.model_dump(exclude={"file", "sha256"})
    return meant


def check_request(request: Any) -> None:
    """Raise `AdapEditError` for anything but a request."""
    if not isinstance(request, EditRequest):
        raise AdapEditError(f"got a {type(request).__name__}; make a request with EditRequest.make")


def check_requests(requests: Any) -> None:
    """Raise `AdapEditError` for a single request where several are wanted, which would be taken for its fields."""
    if isinstance(requests, EditRequest):
        raise AdapEditError("got one request; give a list, or call the pipeline itself")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raise unless `value` is a whole number from `least` on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise AdapEditError(f"{name} is {value!r}, wanted a whole number from {least} on")


def check_seconds(name: str, value: Any) -> None:
    """Raise unless `value` is None or a number of seconds, which NaN is not."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and (not number or math.isnan(value)):
        raise AdapEditError(f"{name} is {value!r}, wanted a number of seconds")


def check_callback(callback: Any) -> None:
    """Raise unless `callback` is None or can be called."""
    if callback is not None and not callable(callback):
        raise AdapEditError(f"callback is {callback!r}, wanted a function callback(done, total)")


def check_preview(preview: Any, every: int | None) -> None:
    """Raise unless there is a function to show previews to where there are any, and the other way round."""
    if preview is not None and not callable(preview):
        raise AdapEditError(f"preview is {preview!r}, wanted a function preview(step, picture)")
    if preview is not None and every is None:
        raise AdapEditError("preview wants to know how often: give preview_every, a number of steps")
