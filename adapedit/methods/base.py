"""Method: what an editing method is, by its name and its knobs; and Context, what it is given to work on.

Nothing here imports torch before a plan is made, so that commands can check knobs at once.
"""

from __future__ import annotations

import reprlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from adapedit_kernels.errors import AdapEditError

if TYPE_CHECKING:
    from torch import Tensor

    from adapedit.configs import ModelFacts
    from adapedit.images import OpenedImage, OpenedMask
    from adapedit.prompts.alignment import Alignment
    from adapedit_engine.models.layers import ModelSpecs
    from adapedit_engine.plan import Adaptive, CrossEdit, EditOutcome, EditPlan, LocalBlend, SelfEdit
    from adapedit_engine.schedule import Schedule

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)]
Knob = Annotated[float, Field(ge=0, le=1e4, allow_inf_nan=False, strict=True)]
Cells = Annotated[int, Field(ge=0, le=4, strict=True)]
"""By which a map is widened; each further one costs a step as much as the first."""

Prompt = Literal["source", "target"]
Kind = TypeVar("Kind", bound="Settings")


class Settings(BaseModel):
    """Checked knobs, known by a name: `class Mine(Base, name="mine")` is in the base's registry from then on.

    gone: knobs of earlier versions, and what to write in their place.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = ""
    registry: ClassVar[dict[str, type[Any]]]
    gone: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, *, name: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if name is not None:
            # A field of one value, by which pydantic tells the kinds apart in a request.
            cls.__annotations__ = {"name": Literal[name], **cls.__annotations__}
            cls.name = name
            cls.registry[name] = cls

    @model_validator(mode="before")
    @classmethod
    def _refuse_gone(cls, values: Any) -> Any:
        for knob, mend in cls.gone.items():
            if isinstance(values, Mapping) and knob in values:
                raise whole_error(f"knob {knob!r} is gone: {mend}")
        return values

    @classmethod
    def knobs(cls) -> tuple[str, ...]:
        """Names of the knobs."""
        return tuple(name for name in cls.model_fields if name != "name")

    def with_defaults(self: Kind, defaults: Mapping[str, Any]) -> Kind:
        """The same with a model's own defaults for every knob that was not named."""
        open_knobs = {name: value for name, value in defaults.items() if name not in self.model_fields_set}
        return self if not open_knobs else type(self).model_validate({**self.model_dump(), **open_knobs})


def made(registry: Mapping[str, type[Any]], what: str, name: str, knobs: Mapping[str, Any]) -> Any:
    """Settings out of a registry by name. Raises `AdapEditError` in one line; `what` is what it calls them."""
    if not isinstance(name, str) or name not in registry:
        raise AdapEditError(f"there is no {what} {name!r}; use one of: {', '.join(registry)}")
    kind = registry[name]
    for knob in knobs:
        if knob not in kind.knobs() and knob not in kind.gone:
            owner = next((other for other, its in registry.items() if knob in its.knobs()), None)
            mend = f" ({knob} belongs to {what} {owner!r})" if owner else ""
            label = name if what == "method" else f"{what} {name}"
            raise AdapEditError(
                f"{label} has no knob {knob!r}; its knobs: {', '.join(kind.knobs()) or 'none'}{mend}"
            )
    try:
        return kind(**knobs)
    except ValidationError as error:
        raise AdapEditError(one_line(error)) from error


def whole_error(message: str) -> PydanticCustomError:
    """An error of settings as a whole, whose message says all that there is to say."""
    return PydanticCustomError("whole", "{message}", {"message": message})


def one_line(error: ValidationError) -> str:
    """What pydantic found first, in a line: the field, what it got, what it wanted."""
    first = error.errors()[0]
    if first["type"] == "whole":
        return first["msg"]
    where = ".".join(str(part) for part in first["loc"]) or "request"
    if first["type"] == "missing":
        return f"{where} is missing"
    wanted = first["msg"].removeprefix("Value error, ")
    wanted = wanted[0].lower() + wanted[1:]
    return f"{where} is {reprlib.repr(first['input'])}: {wanted}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoding:
    """A prompt as the model takes it: hidden states [N, D], and what its rows bring besides, by name (SDXL)."""

    hidden_states: Tensor
    conditioning: Mapping[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """All by name."""
        return {"hidden_states": self.hidden_states, **self.conditioning}

    def equal(self, other: Encoding) -> bool:
        """Whether both say the same, bit for bit."""
        own, others = self.tensors(), other.tensors()
        return own.keys() == others.keys() and all(own[name].equal(others[name]) for name in own)


def rows_of(tracks: Sequence[Sequence[Encoding]]) -> dict[str, Any]:
    """The fields of an `EditPlan` that say what its rows are told: of each track one prompt for each guidance row."""
    import torch

    def stacked(name: str) -> Tensor:
        return torch.stack([torch.stack([prompt.tensors()[name] for prompt in rows]) for rows in tracks])

    names = tracks[0][0].conditioning
    return {
        "encoder_hidden_states": stacked("hidden_states"),
        "conditioning": {name: stacked(name) for name in names},
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class Context:
    """Everything of one edit that does not depend on the method.

    latents [1, C, h, w], times the schedule's init_noise_sigma; noise [T, C, h, w] for stochastic schedules, shared by
    all tracks. source, target: the prompts as the model takes them; source_negative, target_negative: what stands
    against each in guidance, the empty prompt or a negative one.
    instruction: the method's own text, where it has one. latent_scale: see `EditModel`.

    Of a real picture: image, as the model takes it; image_latents [1, C, h, w], clean; source_latents [T, C, h, w], the
    source's after each step, and unconditional_steps [T, N, D], where an inversion gives them.
    mask: where a picture may change.
    """

    alignment: Alignment
    facts: ModelFacts
    specs: ModelSpecs
    schedule: Schedule
    guidance_scale: float
    latents: Tensor
    source: Encoding
    target: Encoding
    source_negative: Encoding
    target_negative: Encoding
    noise: Tensor | None = None
    guidance_until: float = 1.0
    latent_scale: float = 1.0
    instruction: Encoding | None = None
    image: OpenedImage | None = None
    image_latents: Tensor | None = None
    source_latents: Tensor | None = None
    unconditional_steps: Tensor | None = None
    mask: OpenedMask | None = None

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of the maps."""
        return self.specs.map_size(*self.latents.shape[-2:])

    def guided(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """The fields of an `EditPlan` with a track for each prompt, under guidance, beside its negative one.

        Hidden states [K, G, N, D] and weights [K, G]. G is 1, the conditional row alone, at a scale of 1 or less, which
        is no guidance, as in diffusers.
        """
        import torch

        scale = self.guidance_scale
        if scale > 1:
            rows = [[getattr(self, f"{prompt}_negative"), getattr(self, prompt)] for prompt in prompts]
            weights = torch.tensor([1 - scale, scale], dtype=torch.float32, device="cpu")
        else:
            rows = [[getattr(self, prompt)] for prompt in prompts]
            weights = torch.ones(1, dtype=torch.float32, device="cpu")
        return {**rows_of(rows), "guidance_weights": weights.expand(len(prompts), -1).clone()}

    def plan(
        self,
        prompts: Sequence[Prompt] | None = None,
        *,
        cross_attention: CrossEdit | None = None,
        self_attention: SelfEdit | None = None,
        local_blend: LocalBlend | None = None,
        adaptive: Adaptive | None = None,
        collect: bool = True,
    ) -> EditPlan:
        """A plan whose tracks start from the same latents.

        By default two, the source's prompt and the target's, which takes from the source what the parts say; without
        cross_attention all of its maps are its own. prompts: a track for each of these, none of them edited. A real
        picture's trajectory is followed by the first track, where it is the source's.
        """
        from adapedit_engine.plan import EditPlan

        tracks: Sequence[Prompt] = ("source", "target") if prompts is None else prompts
        if prompts is None:
            cross_attention = cross_attention or self._own_maps()
            if self.mask is not None:
                cross_attention, local_blend, adaptive = self._masked(cross_attention, local_blend, adaptive)
        rows = self.guided(tracks)
        guided = rows["guidance_weights"].shape[1] > 1
        return EditPlan(
            **rows,
            schedule=self.schedule,
            latents=self.latents.expand(len(tracks), -1, -1, -1).clone(),
            source_track=(0, 0) if prompts is None else (),
            cross_attention=cross_attention,
            self_attention=self_attention,
            local_blend=local_blend,
            adaptive=adaptive,
            noise=self.noise,
            unconditional_steps=self.unconditional_steps if guided else None,
            source_latents=self.source_latents if tracks[0] == "source" else None,
            collect=collect,
            guidance_until=self.guidance_until,
        )

    def _own_maps(self) -> CrossEdit:
        import torch

        from adapedit_engine.plan import CrossEdit

        none = torch.zeros(2, self.alignment.num_tokens, dtype=torch.float32, device="cpu")
        return CrossEdit(
            token_map=none.unsqueeze(2) * none.unsqueeze(1),
            own_weight=none + 1,
            word_steps=none,
            strength=none[:, 0] + 1,
        )

    def _masked(
        self, cross_attention: CrossEdit, blend: LocalBlend | None, adaptive: Adaptive | None
    ) -> tuple[CrossEdit, LocalBlend, Adaptive | None]:
        """The parts of a target that acts within the mask alone, by S and by what is kept of the source's latents."""
        import torch
        import torch.nn.functional as F

        from adapedit_engine.plan import LocalBlend

        assert self.mask is not None
        cells = torch.from_numpy(self.mask.cells)
        at_maps = F.adaptive_max_pool2d(cells[None], self.map_size).flatten()
        spatial = cross_attention.spatial_map
        spatial = self.on_target(at_maps) if spatial is None else spatial * at_maps.to(spatial.device)
        if blend is None:
            nothing = torch.zeros(2, self.alignment.num_tokens, dtype=torch.float32, device="cpu")
            blend = LocalBlend(
                token_weights=nothing,
                source_weights=nothing,
                threshold=nothing[:, 0] + 1,
                start=nothing[:, 0] + 2,
                grow=nothing[:, 0].long(),
            )
        if adaptive is not None:
            adaptive = replace(adaptive, limit=torch.stack([torch.ones_like(at_maps), at_maps]))
        blend = replace(blend, mask=torch.stack([torch.ones_like(cells), cells]))
        return replace(cross_attention, spatial_map=spatial), blend, adaptive

    def noised(self, clean: Tensor) -> Tensor:
        """[T, C, h, w]: clean latents [1, C, h, w] with the first latents' noise at the level after each step."""
        import torch

        signal, noise = self.schedule.levels.to(clean).reshape(-1, 2, 1, 1, 1).unbind(1)
        drawn = self.latents.to(clean) / self.schedule.init_noise_sigma
        return torch.cat([(signal * clean + noise * drawn)[1 : len(self.schedule)], clean])

    def on_target(self, value: Tensor) -> Tensor:
        """A target track's tensor behind the source's, which is zero where nothing reads it."""
        import torch

        return torch.stack([torch.zeros_like(value), value])

    def from_source(self, layers: Tensor, start: Any = 0.0, stop: Any = 1.0) -> Tensor:
        """[2, L, 2] int64: the target takes from the source in these layers, [L] bool, between shares of the steps.

        start, stop: numbers, or tensors of no axes.
        """
        import torch

        from adapedit_engine.plan import held_steps

        ends = [
            torch.as_tensor(share, dtype=torch.float64, device=getattr(share, "device", "cpu"))
            for share in (start, stop)
        ]
        device = max((end.device for end in ends), key=lambda device: device.type != "cpu")
        # What a first pass has found lies on the device, and is not waited for.
        there = [end.to(device, non_blocking=True) for end in ends]
        steps = torch.stack([held_steps(end, len(self.schedule)) for end in there]).long()
        return self.on_target(layers.to(device, non_blocking=True).unsqueeze(1) * steps)

    def coarse_layers(self) -> Tensor:
        """[L] bool, self-attention layers whose side is at most 1/self_divisor of the latents'."""
        import torch

        divisor = self.facts.self_divisor
        return torch.tensor([2**layer.level >= divisor for layer in self.specs.self_layers], device="cpu")


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """What the method found about the words: relation and word_steps [N] per target token; spatial_map [P]."""

    word_steps: Tensor | None = None
    relation: Tensor | None = None
    spatial_map: Tensor | None = None
    warnings: tuple[str, ...] = ()


METHODS: dict[str, type[Method]] = {}
"""Every method by its name."""


class Method(Settings):
    """An editing method: its fields are its knobs, and its functions make plans of a context.

    inverts: whether it denoises the source again, so that a real picture has to be inverted for it. Other methods want
    the picture's clean latents alone; their sources are given as noised and end at the picture.
    """

    registry: ClassVar[dict[str, type[Any]]] = METHODS
    inverts: ClassVar[bool] = True

    def observe(self, context: Context) -> EditPlan | None:
        """A pass to run before the edit, whose outcome `plan` wants; None where there is none."""
        return None

    @abstractmethod
    def plan(self, context: Context, observed: EditOutcome | None) -> EditPlan:
        """The edit: track 0 is the source, track 1 the target, unless `finish` makes them of what it gives.

        Called with None for `observed` first, for all that does not depend on it. Raises `AdapEditError` for what can't
        be edited so.
        """

    def finish(self, context: Context, observed: EditOutcome | None, edited: EditOutcome) -> EditOutcome:
        """The outcome with the source first and the target second."""
        return edited

    def findings(self, context: Context, observed: EditOutcome | None, edited: EditOutcome) -> Findings:
        """What to tell of the words once the edit is done."""
        return Findings()


def make_settings(name: str, /, **knobs: Any) -> Any:
    """The method `name` with these knobs. Raises `AdapEditError` for unknown names and knobs, and for bad values."""
    return made(METHODS, "method", name, knobs)


def side_by_side(source: EditOutcome, target: EditOutcome) -> EditOutcome:
    """One outcome of two passes of a track each, where the target lies: what both have, one behind the other."""
    import torch

    found: dict[str, Any] = {}
    for entry in fields(target):
        one, two = getattr(source, entry.name), getattr(target, entry.name)
        if isinstance(two, torch.Tensor) and entry.name != "trajectory":
            found[entry.name] = None if one is None else torch.cat([one[:1].to(two), two[:1]])
    return replace(target, **found, trajectory=None)
