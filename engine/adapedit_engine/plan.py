"""EditPlan: one edit as data, from its first latents to its last step.

Letters of axes: K tracks, G guidance rows, N tokens, D width of hidden states, P pixels of a map, L self-attention
layers, T steps, C, h, w latents; `...` anything. A tensor whose axes begin with K has a row a track: plans are merged,
parted, checked, compared and stored by that, whatever fields they have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adapedit_engine.schedule import Schedule
from adapedit_kernels.errors import AdapEditError

ROUNDING = 1e-4
"""Of a step: a share times a number of steps is a product of rounded numbers, and 0.1 * 30 holds three steps."""
CHANNELS = "channels"
MAX_GROW = 4
"""Cells by which places may be widened: each further one is another pooling in every step."""
MAX_GUIDANCE = 3
"""Guidance rows of a track: InstructPix2Pix has three. Tables are that wide, and what is missing has weight 0."""


class PlanError(AdapEditError):
    """A plan whose parts do not fit together, or do not fit the model."""


def held_steps(share: Any, steps: Any) -> Any:
    """Steps that a share of the trajectory holds, floor(share * steps); numbers (int) or tensors (float)."""
    if isinstance(share, Tensor) or isinstance(steps, Tensor):
        return torch.floor(share * steps + ROUNDING)
    return int(share * steps + ROUNDING)


def _axes(axes: str, neutral: float | bool | None = None) -> dict[str, Any]:
    """Of a field whose value is a tensor. neutral: of a track that has nothing of the kind; None: there is none."""
    return {"axes": axes, "neutral": neutral}


@dataclass(frozen=True, kw_only=True, eq=False)
class CrossEdit:
    """What tracks take from the cross-attention maps of their sources; see `Controls` for the equations.

    token_map: A, weights of source tokens in target tokens. own_weight: u, 1 for tokens without a counterpart.
    word_steps: tau, share of the trajectory up to which a token is held to the source's map; word_starts: share from
    which it is; None: from the first step on.
    strength: lambda_s. spatial_map: S; None: 1 everywhere.
    """

    token_map: Tensor = field(metadata=_axes("KNN", 0.0))
    own_weight: Tensor = field(metadata=_axes("KN", 0.0))
    word_steps: Tensor = field(metadata=_axes("KN", 0.0))
    strength: Tensor = field(metadata=_axes("K", 1.0))
    spatial_map: Tensor | None = field(metadata=_axes("KP", 1.0), default=None)
    word_starts: Tensor | None = field(metadata=_axes("KN", 0.0), default=None)


@dataclass(frozen=True, kw_only=True, eq=False)
class SelfEdit:
    """When self-attention layers of a track take queries, keys and values from its source.

    query, key, value: int64, the first step and the one after the last; (0, 0): never. None: never, in any layer.
    layers: bool, those in which it may be. Looked at where the times lie on a device, and reading them would wait for
    it; None: any.
    all_rows: bool, tracks for which that holds in every guidance row, each taking from its like (MasaCtrl), and not in
    the conditional row alone.
    """

    query: Tensor | None = field(metadata=_axes("KL2", 0), default=None)
    key: Tensor | None = field(metadata=_axes("KL2", 0), default=None)
    value: Tensor | None = field(metadata=_axes("KL2", 0), default=None)
    all_rows: Tensor | None = field(metadata=_axes("K", False), default=None)
    layers: Tensor | None = field(metadata=_axes("KL", False), default=None)


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalBlend:
    """Keep the source's latents outside the places where chosen tokens were looked at (Prompt-to-Prompt).

    token_weights, source_weights: non-zero for the chosen tokens of a track's own prompt and of its source's.
    threshold: share of a map's peak above which a pixel belongs to the words. start: share of the trajectory after
    which the blend acts; above 1: never. grow: int64, cells by which the places are widened to all sides.
    places: in 0..1, where a track's words are, used where `known` (bool) says so; elsewhere the words' maps so far say
    it, which the blend has a part in: what it keeps out early stays out.
    mask: 1 for cells of the latents that may change, 0 for those that are the source's at every step whatever the words
    say, in between a mixture; None: all may.
    """

    token_weights: Tensor = field(metadata=_axes("KN", 0.0))
    source_weights: Tensor = field(metadata=_axes("KN", 0.0))
    threshold: Tensor = field(metadata=_axes("K", 1.0))
    start: Tensor = field(metadata=_axes("K", 2.0))
    grow: Tensor = field(metadata=_axes("K", 0))
    known: Tensor | None = field(metadata=_axes("K", False), default=None)
    places: Tensor | None = field(metadata=_axes("KP", 0.0), default=None)
    mask: Tensor | None = field(metadata=_axes("Khw", 1.0), default=None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Adaptive:
    """FWT and DPS inside the step: tau and S of edited tracks from what has been seen so far, in one pass.

    key_tokens: bool, tokens of the words that the edit is about. word_of_token: int64, number of a token's word; -1:
    none. lambda_tau, threshold, relative, temperature, centre, released: see `RelationKnobs`. lambda_spatial: Eq. 9.
    temporal, spatial: bool, tokens whose tau, and tracks whose S, is found anew; those of the plan hold until maps have
    been seen, and elsewhere.
    joined: bool, S is the larger of the track's own and its source's: an edit has to act where the source shows what it
    changes, too. grow: int64, cells by which S is widened. self_layers: bool, self-attention layers whose queries and
    keys come from the source for the share that FWT gives to tokens without a word. limit: factor on S; None: 1.
    """

    key_tokens: Tensor = field(metadata=_axes("KN", False))
    word_of_token: Tensor = field(metadata=_axes("KN", -1))
    lambda_tau: Tensor = field(metadata=_axes("K", 1.0))
    threshold: Tensor = field(metadata=_axes("K", 0.3))
    relative: Tensor = field(metadata=_axes("K", True))
    temperature: Tensor = field(metadata=_axes("K", 0.0))
    centre: Tensor = field(metadata=_axes("K", True))
    released: Tensor = field(metadata=_axes("K", False))
    lambda_spatial: Tensor = field(metadata=_axes("K", 1.0))
    temporal: Tensor = field(metadata=_axes("KN", False))
    spatial: Tensor = field(metadata=_axes("K", False))
    joined: Tensor = field(metadata=_axes("K", False))
    grow: Tensor = field(metadata=_axes("K", 0))
    self_layers: Tensor = field(metadata=_axes("KL", False))
    limit: Tensor | None = field(metadata=_axes("KP", 1.0), default=None)


@dataclass(frozen=True, kw_only=True, eq=False)
class EditPlan:
    """K tracks (latent trajectories) that share a schedule and may look at each other.

    By convention track 0 is the source and the others are its targets; a plan of unedited tracks is plain generation.
    Of a track's G guidance rows the last is the conditional one, and controls act on it alone. Tensors may lie on any
    device.

    latents:             of the first step, already times `schedule.init_noise_sigma`.
    guidance_weights:    eps = sum_g w_g eps_g. Classifier-free guidance g: (1 - g, g).
    source_track:        per track, the one whose maps it takes; its own number: not edited. (): none is.
    noise:               [T, C, h, w], shared by the tracks, or [T, K, C, h, w], for stochastic schedules.
    unconditional_steps: hidden states of every track's first guidance row, step by step, in place of those in
                         `encoder_hidden_states` (null-text inversion).
    source_latents:      what track 0 is set to after each step, whatever was predicted for it (direct inversion).
    conditioning:        what rows bring besides, by name, [K, G, ...]. "channels": appended to the latents as further
                         input channels (InstructPix2Pix); others are handed to the model (SDXL), see `ModelSpecs`.
    collect:             average maps and visual features over the steps, for the outcome.
    record:              keep the latents after every step, for the outcome.
    guidance_until:      share of the trajectory after which only the conditional rows are run and taken as they are:
                         an approximation that saves their cost; 1: never.
    """

    schedule: Schedule
    latents: Tensor = field(metadata=_axes("KChw"))
    encoder_hidden_states: Tensor = field(metadata=_axes("KGND"))
    guidance_weights: Tensor = field(metadata=_axes("KG"))
    source_track: tuple[int, ...] = ()
    cross_attention: CrossEdit | None = None
    self_attention: SelfEdit | None = None
    local_blend: LocalBlend | None = None
    adaptive: Adaptive | None = None
    noise: Tensor | None = field(metadata=_axes("..."), default=None)
    unconditional_steps: Tensor | None = field(metadata=_axes("TND"), default=None)
    source_latents: Tensor | None = field(metadata=_axes("TChw"), default=None)
    conditioning: Mapping[str, Tensor] = field(default_factory=dict)
    collect: bool = False
    record: bool = False
    guidance_until: float = 1.0

    def __post_init__(self) -> None:
        if self.latents.ndim != 4 or self.encoder_hidden_states.ndim != 4:
            raise PlanError(
                "wanted latents [tracks, C, h, w] and encoder_hidden_states [tracks, guidance rows, N, D], "
                f"got {tuple(self.latents.shape)} and {tuple(self.encoder_hidden_states.shape)}"
            )
        if not self.source_track:
            object.__setattr__(self, "source_track", tuple(range(self.tracks)))
        if self.guidance > MAX_GUIDANCE:
            raise PlanError(f"a track has {self.guidance} guidance rows, wanted at most {MAX_GUIDANCE}")
        if not 0 <= self.guidance_until <= 1:
            raise PlanError(f"guidance_until is {self.guidance_until}, wanted a share between 0 and 1")
        self._check_shapes({})
        self._check_tracks()

    @property
    def tracks(self) -> int:
        """K."""
        return self.latents.shape[0]

    @property
    def guidance(self) -> int:
        """G."""
        return self.encoder_hidden_states.shape[1]

    @property
    def tokens(self) -> int:
        """N."""
        return self.encoder_hidden_states.shape[2]

    @property
    def steps(self) -> int:
        """T."""
        return len(self.schedule)

    @property
    def rows(self) -> int:
        """Rows of a UNet call that the plan takes: 2 (1 + K) for K edits of one source with guidance."""
        return self.tracks * self.guidance

    @property
    def edited(self) -> bool:
        """Whether some track takes maps from another."""
        return any(source != track for track, source in enumerate(self.source_track))

    @property
    def needs_maps(self) -> bool:
        """Whether maps and features have to be asked for."""
        return self.collect or self.local_blend is not None or self.adaptive is not None

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor but the schedule's by its name; of a part `part.name`, of conditioning `conditioning.name`."""
        found: dict[str, Tensor] = {}
        parts: dict[str, Any] = {"": self, **{f"{name}.": getattr(self, name) for name in PARTS}}
        for prefix, part in parts.items():
            for entry in () if part is None else fields(part):
                if isinstance(value := getattr(part, entry.name), Tensor):
                    found[prefix + entry.name] = value
        return found | {f"conditioning.{name}": value for name, value in self.conditioning.items()}

    def with_tensors(self, tensors: Mapping[str, Tensor], **facts: Any) -> EditPlan:
        """The plan with these tensors, named as `tensors` does, in place of all that it has."""
        values: dict[str, Any] = dict.fromkeys(("noise", "unconditional_steps", "source_latents"))
        values |= {name: tensor for name, tensor in tensors.items() if "." not in name}
        for name, kind in PARTS.items():
            own = {n.split(".")[1]: t for n, t in tensors.items() if n.startswith(f"{name}.")}
            values[name] = kind(**own) if own else None
        values["conditioning"] = {
            name.split(".")[1]: tensor for name, tensor in tensors.items() if name.startswith("conditioning.")
        }
        return replace(self, **values, **facts)

    def without_guidance(self) -> EditPlan:
        """The same with each track's conditional row alone."""
        return replace(
            self,
            encoder_hidden_states=self.encoder_hidden_states[:, -1:],
            guidance_weights=torch.ones_like(self.guidance_weights[:, -1:]),
            conditioning={name: value[:, -1:] for name, value in self.conditioning.items()},
            guidance_until=1.0,
            unconditional_steps=None,
        )

    def digest(self) -> bytes:
        """32 bytes of all that the plan says. Equal plans have the same, wherever their tensors lie."""
        content = hashlib.sha256()
        sigma = self.schedule.init_noise_sigma
        facts = (self.source_track, self.collect, self.record, self.guidance_until, sigma)
        content.update(repr(facts).encode())
        schedule = {entry.name: getattr(self.schedule, entry.name) for entry in fields(self.schedule)}
        tensors = {n: t for n, t in schedule.items() if isinstance(t, Tensor)} | self.tensors()
        for name, tensor in tensors.items():
            content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            content.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return content.digest()

    def check_model(self, specs: Any) -> None:
        """Raise `PlanError` unless a model with these `ModelSpecs` can run the plan."""
        _, channels, height, width = self.latents.shape
        brought = {name: tuple(value.shape[2:]) for name, value in self.conditioning.items()}
        (extra, *_) = brought.pop(CHANNELS, (0,))
        if channels != specs.out_channels or channels + extra != specs.in_channels:
            raise PlanError(
                f"latents have {channels} channels and {extra} conditioning channels, "
                f"this model takes {specs.in_channels} and returns {specs.out_channels}"
            )
        if brought != specs.conditioning:
            raise PlanError(f"conditioning has {brought or 'nothing'}, this model wants {specs.conditioning}")
        if self.encoder_hidden_states.shape[-1] != specs.text_channels:
            got = self.encoder_hidden_states.shape[-1]
            raise PlanError(f"encoder_hidden_states are {got} wide, this model wants {specs.text_channels}")
        map_height, map_width = specs.map_size(height, width)
        self._check_shapes({"P": map_height * map_width, "L": len(specs.self_layers)})

    def _check_shapes(self, model: Mapping[str, int]) -> None:
        _, channels, height, width = self.latents.shape
        sizes = {"K": self.tracks, "G": self.guidance, "N": self.tokens, "T": self.steps, "2": 2, **model}
        sizes |= {"D": self.encoder_hidden_states.shape[3], "C": channels, "h": height, "w": width}
        for name, tensor in self.tensors().items():
            axes = axes_of(name)
            wanted = [sizes.get(letter) for letter in axes.removesuffix("...")]
            shape: tuple[int, ...] = tuple(tensor.shape)
            head = shape[: len(wanted)] if axes.endswith("...") else shape
            fits = all(want in (None, side) for side, want in zip(head, wanted, strict=False))
            if len(head) != len(wanted) or not fits:
                raise PlanError(f"{name} has shape {shape}, wanted {_shown(wanted)}")
            is_bool = name in FIELDS and isinstance(FIELDS[name].neutral, bool)
            if name in FIELDS and is_bool != (tensor.dtype == torch.bool):
                raise PlanError(f"{name} is {tensor.dtype}, wanted {'torch.bool' if is_bool else 'numbers'}")
        shared, own = (self.steps, channels, height, width), (self.steps, *self.latents.shape)
        if self.noise is not None and tuple(self.noise.shape) not in (shared, own):
            got = tuple(self.noise.shape)
            raise PlanError(f"noise has shape {got}, wanted {_shown(shared)} or {_shown(own)}")
        if self.noise is None and self.schedule.stochastic:
            raise PlanError(f"this schedule adds noise at every step: give noise of shape {_shown(shared)}")
        if self.unconditional_steps is not None and self.guidance < 2:
            raise PlanError("unconditional_steps wants at least two guidance rows, this plan has one a track")

    def _check_tracks(self) -> None:
        sources = self.source_track
        if len(sources) != self.tracks or not all(0 <= source < self.tracks for source in sources):
            raise PlanError(f"source_track is {sources}, wanted {self.tracks} numbers below {self.tracks}")
        if any(sources[source] != source for source in sources):
            raise PlanError(f"source_track is {sources}: a source track can't be edited itself")
        if sources[0] != 0:
            raise PlanError(f"source_track is {sources}: track 0 can't be edited, put its source first")
        if self.edited and self.cross_attention is None:
            raise PlanError("an edited track needs cross_attention: token_map, own_weight and word_steps")
        for name, part in (("local_blend", self.local_blend), ("adaptive", self.adaptive)):
            if part is not None and not bool(((part.grow >= 0) & (part.grow <= MAX_GROW)).all()):
                raise PlanError(f"{name}.grow is {part.grow.tolist()}, wanted 0 to {MAX_GROW} cells")


PARTS: dict[str, Any] = {
    "cross_attention": CrossEdit,
    "self_attention": SelfEdit,
    "local_blend": LocalBlend,
    "adaptive": Adaptive,
}


class Field(NamedTuple):
    """Axes of a plan's tensor, and what a track has that has nothing of the kind."""

    axes: str
    neutral: float | bool | None


FIELDS: dict[str, Field] = {
    (f"{part}.{entry.name}" if part else entry.name): Field(entry.metadata["axes"], entry.metadata["neutral"])
    for part, kind in {"": EditPlan, **PARTS}.items()
    for entry in fields(kind)
    if "axes" in entry.metadata
}
"""Every tensor of a plan by its name, but conditioning, whose axes are KG..."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EditOutcome:
    """What a plan ended with, on the runner's device.

    latents [K, C, h, w] float32. maps [K, P, N] and features [K, P, V]: averages over the steps, where the plan asked
    for them; last_features: the last step's. word_steps [K, N] and spatial_map [K, P]: the plan's, or what the single
    pass found last. steps: how many were run. trajectory [T, K, C, h, w]: latents after each step, where recorded.
    broken_step [K] int64: the first step whose latents are not finite; -1: none.
    """

    latents: Tensor
    maps: Tensor | None = None
    features: Tensor | None = None
    last_features: Tensor | None = None
    word_steps: Tensor | None = None
    spatial_map: Tensor | None = None
    steps: int = 0
    trajectory: Tensor | None = None
    broken_step: Tensor | None = None

    def select(self, tracks: Sequence[int]) -> EditOutcome:
        """The outcome of some tracks, in this order."""
        values = {
            entry.name: getattr(self, entry.name)[list(tracks)]
            for entry in fields(self)
            if isinstance(getattr(self, entry.name), Tensor) and entry.name != "trajectory"
        }
        recorded = None if self.trajectory is None else self.trajectory[:, list(tracks)]
        return replace(self, **values, trajectory=recorded)


def merge(plans: Sequence[EditPlan]) -> EditPlan:
    """One plan: the first track of all, which they have in common, then every other track of each.

    A plan without a part that others have gets tracks that have nothing of the kind.
    """
    first = plans[0]
    if len(plans) == 1:
        return first
    sources, start = [0], 1
    for plan in plans:
        sources += [0 if source == 0 else source + start - 1 for source in plan.source_track[1:]]
        start += plan.tracks - 1
    owned = [plan.tensors() for plan in plans]
    tensors: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for own in owned for name in own):
        if not axes_of(name).startswith("K"):
            tensors[name] = owned[0][name]
            continue
        like = next(own[name] for own in owned if name in own)
        others = [
            own[name][1:]
            if name in own
            else like.new_full((plan.tracks - 1, *like.shape[1:]), FIELDS[name].neutral)  # type: ignore[arg-type]
            for plan, own in zip(plans, owned, strict=True)
        ]
        # What a first pass has found lies on the device, and stays there.
        parts = [like[:1], *others]
        device = max((part.device for part in parts), key=lambda device: device.type != "cpu")
        tensors[name] = torch.cat([part.to(device, non_blocking=True) for part in parts])
    return first.with_tensors(tensors, source_track=tuple(sources))


def split(outcome: EditOutcome, plans: Sequence[EditPlan]) -> list[EditOutcome]:
    """The outcome of `merge(plans)` as one for each of them, with the track that they share first in each."""
    if len(plans) == 1:
        return [outcome]
    return [outcome.select(tracks) for tracks in tracks_of(plans)]


def tracks_of(plans: Sequence[EditPlan]) -> list[tuple[int, ...]]:
    """Where in `merge(plans)` the tracks of each are, the one that they share first."""
    found, start = [], 1
    for plan in plans:
        found.append((0, *range(start, start + plan.tracks - 1)))
        start += plan.tracks - 1
    return found


def axes_of(name: str) -> str:
    """The axes of a plan's tensor, by its name in `EditPlan.tensors`."""
    return "KG..." if name.startswith("conditioning.") else FIELDS[name].axes


def _shown(shape: Sequence[int | None]) -> str:
    sides = ["any" if side is None else str(side) for side in shape]
    return f"({sides[0]},)" if len(sides) == 1 else f"({', '.join(sides)})"
