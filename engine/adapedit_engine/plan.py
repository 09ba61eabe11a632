"""EditPlan: one edit as data, from initial latents to the last step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adapedit_engine.adaptive import Adaptive
from adapedit_engine.blend import LocalBlend
from adapedit_engine.schedule import Schedule
from adapedit_kernels.errors import AdapEditError


class PlanError(AdapEditError):
    """A plan whose parts do not fit together, or do not fit the model."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EditPlan:
    """K1 tracks (latent trajectories) that share a schedule and may look at each other.

    By convention track 0 is the source and the others are its targets; a plan of unedited tracks is plain
    generation.
    A track has G guidance rows, of which the last is the conditional one: controls act on it alone, as in
    Prompt-to-Prompt. Tensors may lie on any device; the loop moves them once.

    schedule:              T steps.
    latents:               [K1, C, h, w] of the first step, already times `schedule.init_noise_sigma`.
    encoder_hidden_states: [K1, G, N, D].
    guidance_weights:      [K1, G]; eps = sum_g w_g eps_g. Classifier-free guidance g: (1 - g, g).
    source_track:          per track, the track whose maps it takes; its own number: not edited. Default: none
                           is edited.
    token_map:             [K1, N, N], see `Controls`; needed with the next three where a track is edited.
    own_weight:            [K1, N], 1 for tokens without a counterpart.
    word_steps:            [K1, N], tau: share of the trajectory for which a token is held to the source's
                           map.
    strength:              [K1], lambda_s. Default: 1.
    spatial_map:           [K1, P], S at the map resolution. Default: 1 everywhere.
    self_query, self_key, self_value: [T, L, K1] bool, whether self-attention layer l of a track takes them
                           from its source track at step t. Default: never.
    self_all_rows:         [K1] bool, tracks whose three tables act on every guidance row, each taking from its
                           like (MasaCtrl), and not on the conditional row alone. Default: none.
    noise:                 [T, C, h, w] or [T, K1, C, h, w], for stochastic schedules; tracks share the first
                           form.
    conditioning_channels: [K1, G, E, h, w], appended to the latents as further input channels
                           (InstructPix2Pix).
    unconditional_steps:   [T, N, D], hidden states of every track's first guidance row, step by step, in place of
                           those in `encoder_hidden_states` (null-text inversion).
    source_latents:        [T, C, h, w], what track 0 is set to after each step, whatever was predicted for it: a
                           known picture's trajectory (direct inversion).
    record:                keep the latents after every step, for the outcome.
    guidance_until:        share of the trajectory after which only the conditional rows are run and taken as they
                           are: an approximation that saves their cost, 1 for none.
    local_blend, adaptive: see there.
    collect:               average maps and visual features over the steps, for the outcome.
    """

    schedule: Schedule
    latents: Tensor
    encoder_hidden_states: Tensor
    guidance_weights: Tensor
    source_track: tuple[int, ...] = ()
    token_map: Tensor | None = None
    own_weight: Tensor | None = None
    word_steps: Tensor | None = None
    strength: Tensor | None = None
    spatial_map: Tensor | None = None
    self_query: Tensor | None = None
    self_key: Tensor | None = None
    self_value: Tensor | None = None
    self_all_rows: Tensor | None = None
    noise: Tensor | None = None
    conditioning_channels: Tensor | None = None
    local_blend: LocalBlend | None = None
    adaptive: Adaptive | None = None
    collect: bool = False
    guidance_until: float = 1.0
    unconditional_steps: Tensor | None = None
    source_latents: Tensor | None = None
    record: bool = False

    def __post_init__(self) -> None:
        if self.latents.ndim != 4 or self.encoder_hidden_states.ndim != 4:
            raise PlanError(
                "wanted latents [tracks, C, h, w] and encoder_hidden_states [tracks, guidance rows, N, D], "
                f"got {tuple(self.latents.shape)} and {tuple(self.encoder_hidden_states.shape)}"
            )
        if not 0 <= self.guidance_until <= 1:
            raise PlanError(f"guidance_until is {self.guidance_until}, wanted a share between 0 and 1")
        if not self.source_track:
            object.__setattr__(self, "source_track", tuple(range(self.tracks)))
        self._check_shapes()
        self._check_tracks()

    @property
    def tracks(self) -> int:
        """K1."""
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
    def edited(self) -> bool:
        """Whether some track takes maps from another."""
        return any(source != track for track, source in enumerate(self.source_track))

    @property
    def needs_maps(self) -> bool:
        """Whether the loop has to ask for maps and features."""
        return self.collect or self.local_blend is not None or self.adaptive is not None

    def _check_shapes(self) -> None:
        tracks, guidance, tokens, steps = self.tracks, self.guidance, self.tokens, self.steps
        _, channels, height, width = self.latents.shape
        if self.encoder_hidden_states.shape[0] != tracks:
            raise PlanError(
                f"latents have {tracks} tracks, encoder_hidden_states {len(self.encoder_hidden_states)}"
            )
        wanted: dict[str, tuple[int | None, ...]] = {
            "guidance_weights": (tracks, guidance),
            "token_map": (tracks, tokens, tokens),
            "own_weight": (tracks, tokens),
            "word_steps": (tracks, tokens),
            "strength": (tracks,),
            "spatial_map": (tracks, None),
            **dict.fromkeys(("self_query", "self_key", "self_value"), (steps, None, tracks)),
            "self_all_rows": (tracks,),
            "conditioning_channels": (tracks, guidance, None, height, width),
            "unconditional_steps": (steps, tokens, self.encoder_hidden_states.shape[3]),
            "source_latents": (steps, channels, height, width),
        }
        for name, shape in wanted.items():
            value: Tensor | None = getattr(self, name)
            if value is not None and not _fits(value, shape):
                raise PlanError(f"{name} has shape {tuple(value.shape)}, wanted {_shown(shape)}")
        for name in ("self_query", "self_key", "self_value", "self_all_rows"):
            value = getattr(self, name)
            if value is not None and value.dtype != torch.bool:
                raise PlanError(f"{name} is {value.dtype}, wanted torch.bool")
        shared, own = (steps, channels, height, width), (steps, tracks, channels, height, width)
        if self.noise is not None and tuple(self.noise.shape) not in (shared, own):
            raise PlanError(
                f"noise has shape {tuple(self.noise.shape)}, wanted {_shown(shared)} or {_shown(own)}"
            )
        if self.unconditional_steps is not None and guidance < 2:
            raise PlanError("unconditional_steps wants at least two guidance rows, this plan has one a track")
        if self.noise is None and self.schedule.stochastic:
            raise PlanError(f"this schedule adds noise at every step: give noise of shape {_shown(shared)}")

    def _check_tracks(self) -> None:
        if len(self.source_track) != self.tracks or not all(0 <= s < self.tracks for s in self.source_track):
            raise PlanError(
                f"source_track is {self.source_track}, wanted {self.tracks} numbers below {self.tracks}"
            )
        if any(self.source_track[source] != source for source in self.source_track):
            raise PlanError(f"source_track is {self.source_track}: a source track can't be edited itself")
        if self.source_latents is not None and self.source_track[0] != 0:
            raise PlanError("source_latents are of track 0, which takes maps from another track here")
        if self.edited:
            needed = ("token_map", "own_weight", "word_steps")
            missing = [name for name in needed if getattr(self, name) is None]
            if missing:
                raise PlanError(f"an edited track needs {', '.join(needed)}; {missing[0]} is missing")
        for part in (self.local_blend, self.adaptive):
            if part is not None:
                part.check(tracks=self.tracks, tokens=self.tokens)


def without_guidance(plan: EditPlan) -> EditPlan:
    """The same with each track's conditional row alone."""
    channels = plan.conditioning_channels
    return replace(
        plan,
        encoder_hidden_states=plan.encoder_hidden_states[:, -1:],
        guidance_weights=torch.ones_like(plan.guidance_weights[:, -1:]),
        conditioning_channels=None if channels is None else channels[:, -1:],
        guidance_until=1.0,
        unconditional_steps=None,
    )


def plan_rows(plan: EditPlan) -> int:
    """Rows of a UNet call that the plan takes: 2 (1 + K) for K edits of one source with guidance."""
    return plan.tracks * plan.guidance


def _fits(value: Tensor, shape: tuple[int | None, ...]) -> bool:
    return value.ndim == len(shape) and all(
        w is None or s == w for s, w in zip(value.shape, shape, strict=True)
    )


def _shown(shape: tuple[int | None, ...]) -> str:
    sides = ["any" if side is None else str(side) for side in shape]
    return f"({sides[0]},)" if len(sides) == 1 else f"({', '.join(sides)})"
