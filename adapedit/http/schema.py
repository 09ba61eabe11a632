"""What comes and goes: the bodies of requests and answers, from which the API's document is made."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, field_validator
from pydantic_core import CoreSchema

from adapedit.http.settings import Settings
from adapedit.inversion import INVERSIONS
from adapedit.methods import METHODS
from adapedit.request import EditRequest

Status = Literal["queued", "in_progress", "completed", "failed", "cancelled"]
Variant = Literal["source", "target", "maps", "spatial-map", "arrays", "edit"]
ENDED = ("completed", "failed", "cancelled")
EDIT_ID = "^edit_[0-9a-f]{32}$"
DELIVERY = ("model", "priority", "deadline", "on_disconnect")


def _picture(**more: Any) -> dict[str, Any]:
    """The schema of a picture as it comes here. more: what may be said of it."""
    url = {"type": "string", "description": "data:image/png;base64,… or, of a form, the name of its file"}
    file = {
        "type": "object",
        "properties": {"file": url, **more},
        "required": ["file"],
        "additionalProperties": False,
    }
    return {"anyOf": [url, file, {"type": "null"}], "default": None}


PICTURES = {"image": _picture(fit={"enum": ["crop", "pad", "stretch"]}), "mask": _picture()}
"""Fields of a request that are pictures."""


class EditBody(EditRequest):
    """An edit to be made: the fields of `EditRequest`, and how it is to be delivered.

    model:         one of GET /v1/models; None: the first.
    priority:      more goes first.
    deadline:      seconds from now within which the edit has to begin; later it fails.
    on_disconnect: "cancel": the edit ends when whoever listens to its events goes away; "keep": it goes on.
    """

    model_config = ConfigDict(strict=True, title="Edit request")

    model: Annotated[str, Field(max_length=100)] | None = None
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    deadline: Annotated[float, Field(gt=0, le=604800, allow_inf_nan=False)] | None = None
    on_disconnect: Literal["keep", "cancel"] = "keep"

    @field_validator("source_prompt", "target_prompt", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            raise ValueError("a text was wanted")
        return value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Pictures as they come here; methods and inversions by name, too."""
        schema = handler.resolve_ref_schema(handler(core))
        fields = schema["properties"]
        fields |= PICTURES
        for name, known in (("method", METHODS), ("inversion", INVERSIONS)):
            fields[name] = {"anyOf": [{"enum": sorted(known)}, fields[name]]}
        return schema

    def request(self) -> EditRequest:
        """The edit alone."""
        given = {name: getattr(self, name) for name in self.model_fields_set - set(DELIVERY)}
        return EditRequest.make(**given)


class ImageBody(BaseModel):
    """OpenAI's fields; others (`extra_body`) are those of an edit: source_prompt, seed, num_inference_steps, method, …

    prompt:     of the picture that is wanted. size: WIDTHxHEIGHT, or auto: what suits the model.
    n:          pictures, of as many seeds from `seed` on.
    partial_images: pictures that a stream shows before the last one.
    quality, background, user: accepted, and without effect.
    """

    model_config = ConfigDict(strict=True, extra="allow", title="Image request")

    prompt: Annotated[str, Field(min_length=1)]
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=10)] | None = 1
    size: Annotated[str, Field(pattern=r"^(auto|[0-9]{1,4}x[0-9]{1,4})$")] | None = "auto"
    output_format: Literal["png", "jpeg", "webp"] | None = "png"
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = 100
    response_format: Literal["b64_json", "url"] | None = "b64_json"
    stream: bool | None = False
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = 0
    quality: Literal["auto", "low", "medium", "high", "standard", "hd"] | None = "auto"
    background: Literal["auto", "opaque"] | None = "auto"
    user: Annotated[str, Field(max_length=200)] | None = None


class Problem(BaseModel):
    """What went wrong. param: the field at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class Failure(BaseModel):
    """The body of every answer that is no success."""

    error: Problem


class Progress(BaseModel):
    """Steps of the model that are done, of how many; 0 of 0: not known yet."""

    step: int
    steps: int


class Edit(BaseModel):
    """An edit as a job.

    position: edits before it in its model's queue; None where it does not wait. words: with tau and Lambda, once it is
    completed. timings: seconds waiting, preparing, running, decoding, and in all. variants: what /content has.
    """

    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, Field(pattern=EDIT_ID)]
    object: Literal["edit"] = "edit"
    created_at: int
    ended_at: int | None
    expires_at: int | None
    status: Status
    model: str
    priority: int
    on_disconnect: Literal["keep", "cancel"]
    progress: Progress
    position: int | None
    error: Problem | None
    timings: dict[str, float]
    request: dict[str, Any]
    words: list[dict[str, Any]] | None
    warnings: list[str]
    variants: list[Variant]


class EditList(BaseModel):
    """A page of edits. after: the id to ask for the next page with."""

    object: Literal["list"] = "list"
    data: list[Edit]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    id: Annotated[str, Field(pattern=EDIT_ID)]
    object: Literal["edit"] = "edit"
    deleted: Literal[True] = True


class AlignmentBody(BaseModel):
    """Two prompts to align."""

    model_config = ConfigDict(strict=True, extra="forbid")

    source_prompt: Annotated[str, Field(min_length=1)]
    target_prompt: Annotated[str, Field(min_length=1)]
    model: Annotated[str, Field(max_length=100)] | None = None


class AlignedWord(BaseModel):
    """See `adapedit.Word`."""

    text: str
    index: int
    tokens: list[int]
    kind: Literal["kept", "replaced", "inserted", "deleted"]
    counterpart: int | None
    is_key: bool
    anchor: int | None


class Aligned(BaseModel):
    """Words of both prompts, and which stand for which."""

    object: Literal["alignment"] = "alignment"
    model: str
    source_prompt: str
    target_prompt: str
    source_words: list[AlignedWord]
    target_words: list[AlignedWord]


class ServedModel(BaseModel):
    """A model. state: loading, ready, or what is wrong with it. side: of its pictures, pixels."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "adapedit"
    state: str
    runner: str | None
    side: int | None
    methods: list[str]
    known_words: list[str] | None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ServedModel]


class Health(BaseModel):
    """status: ok, draining, loading or failed. models: the state of each."""

    status: Literal["ok", "draining", "loading", "failed"]
    models: dict[str, str]


def limit_document(schemas: dict[str, Any], settings: Settings) -> None:
    """Let the bodies' schemas say what this server takes, and OpenAI's which fields of an edit go with its own."""
    for name in ("ImageInput", "MaskInput"):  # as Python takes them
        schemas.pop(name, None)
    edit, image = schemas["EditBody"]["properties"], schemas["ImageBody"]
    edit["num_inference_steps"]["maximum"] = settings.max_steps
    others = {name: field for name, field in edit.items() if name not in (*PICTURES, "target_prompt")}
    image["properties"] = {**others, **image["properties"]}
    image["properties"]["source_prompt"] = {
        "anyOf": [others["source_prompt"], {"type": "null"}],
        "default": None,
    }
    image["additionalProperties"] = False
    upload = {"type": "string", "format": "binary"}
    schemas["ImageForm"] = {**image, "title": "Image form", "required": [*image["required"], "image"]}
    schemas["ImageForm"]["properties"] = {**image["properties"], "image": upload, "mask": upload}
    for name in ("EditBody", "ImageBody", "AlignmentBody"):
        for field in schemas[name]["properties"].values():
            for kind in field.get("anyOf", [field]):
                if kind.get("type") == "string" and "enum" not in kind and "pattern" not in kind:
                    kind["maxLength"] = min(kind.get("maxLength", settings.max_text), settings.max_text)
    for field in (edit["source_prompt"], edit["target_prompt"], image["properties"]["prompt"]):
        field |= {"minLength": 1, "pattern": r"\S"}
