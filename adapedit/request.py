"""EditRequest: everything that an edit depends on, as validated data that can be written down and repeated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from adapedit.images import ImageField
from adapedit.inversion.settings import InversionSettings
from adapedit.methods.settings import AdapEdit, MethodSettings, make_settings, one_line
from adapedit_kernels.errors import AdapEditError


def _not_empty(prompt: str) -> str:
    if not prompt.strip():
        raise ValueError("it is empty; describe the picture in a few words")
    return prompt


Prompt = Annotated[str, AfterValidator(_not_empty)]
Side = Annotated[int, Field(ge=8, le=4096)]


class EditRequest(BaseModel):
    """One edit.

    source_prompt, target_prompt: what the picture shows, and what it shall show.
    seed:                of the first latents, shared by source and target.
    num_inference_steps: T.
    guidance_scale:      of classifier-free guidance; None: what suits the model (7.5 for Stable Diffusion).
    height, width:       pixels, at most 4096; None: what the model was trained for.
    method:              the editing method with its knobs.
    guidance_until:      share of the trajectory after which guidance is skipped: an approximation that saves half
                         of the later steps; 1: never.
    solver:              "model": the model's scheduler; "dpm++": DPM-Solver++(2M), for fewer steps.
    image:               a real picture to edit: a path, a `PIL.Image`, or {"file": ..., "fit": ...}, see `ImageInput`;
                         None: the source prompt's own.
    inversion:           what leads back to it, by name or with knobs; None: "direct" where the method wants one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source_prompt: Prompt
    target_prompt: Prompt
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] = 50
    guidance_scale: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    height: Side | None = None
    width: Side | None = None
    method: MethodSettings = Field(default_factory=AdapEdit)
    guidance_until: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 1.0
    solver: Literal["model", "dpm++"] = "model"
    image: ImageField | None = None
    inversion: InversionSettings | None = None

    @model_validator(mode="after")
    def _inverts_something(self) -> EditRequest:
        if self.inversion is not None and self.image is None:
            raise ValueError(f"inversion {self.inversion.name!r} wants a picture; give one as image")
        return self

    @classmethod
    def make(cls, **fields: Any) -> EditRequest:
        """The request, or an `AdapEditError` that says in one line which field is wrong and what was wanted.

        method: settings, or the name of a method for its defaults.
        """
        if isinstance(fields.get("method"), str):
            fields["method"] = make_settings(fields["method"])
        try:
            return cls(**fields)
        except ValidationError as error:
            raise AdapEditError(one_line(error)) from error

    @classmethod
    def read(cls, path: str | Path) -> EditRequest:
        """The request of an edit.json that `EditResult.save` wrote, or of the folder that it is in.

        Raises `AdapEditError` where there is none, or one that says something else.
        """
        try:
            path = Path(path)
            path = path / "edit.json" if path.is_dir() else path
            fields = dict(json.loads(path.read_text(encoding="utf-8"))["request"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AdapEditError(
                f"{path} is no edit.json ({error}); give a folder that an edit was saved in"
            ) from error
        request = cls.make(**fields)
        if request.image is None:
            return request
        return request.model_copy(update={"image": request.image.beside(path.parent)})


def check_request(request: Any) -> None:
    """Raise `AdapEditError` for anything but a request."""
    if not isinstance(request, EditRequest):
        raise AdapEditError(f"got a {type(request).__name__}; make a request with EditRequest.make")


def check_requests(requests: Any) -> None:
    """Raise `AdapEditError` for a single request where several are wanted, which would be taken for its fields."""
    if isinstance(requests, EditRequest):
        raise AdapEditError("got one request; give a list, or call the pipeline itself")
