"""Batch: plans of one latent size side by side, and the only place of their state.

Every edit has a range of tracks and, track by track, of rows, of buffers that stay where they are. A call takes the
first n rows, or those of some neighbouring edits; rows and tracks that others take from are stored as distances, so
that edits move up when others leave, and halves run alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapedit_engine.cache import ProjectionCache, to_device
from adapedit_engine.models.controls import EDIT_NAMES, SELF_NAMES, Controls
from adapedit_engine.models.unet import OUTPUT_NAMES
from adapedit_engine.plan import (
    CHANNELS,
    FIELDS,
    MAX_GROW,
    MAX_GUIDANCE,
    EditOutcome,
    EditPlan,
    PlanError,
    SelfEdit,
    held_steps,
)
from adapedit_engine.runners.base import Runner
from adapedit_kernels import RelationKnobs, spatial_similarity, word_relation

COLUMNS = (
    "timesteps",
    "input_scale",
    "sample_weight",
    "output_weight",
    "noise_weight",
    "history_sample_weight",
    "history_output_weight",
)
"""What of a schedule a step reads, in the order in which a track's table has it."""
SELF_FIELDS = dict(zip(SELF_NAMES, ("query", "key", "value"), strict=True))
STATE = ("latents", "step", "map_sum", "feature_sum", "features", "history", "broken_step")
FOUND = (
    "cross_attention.word_steps",
    "cross_attention.spatial_map",
    "self_attention.query",
    "self_attention.key",
)
PROMPT, CONDITIONING = "prompt.", "conditioning."


@dataclass(eq=False)
class Seat:
    """Where an edit sits: its first track and row, and how many steps it has done.

    noise [T, K, C, h, w] and prompts (by name, [T, 1, ...]): what changes from step to step and is no table's.
    taken: by self-attention control, [L, 2], the steps from and to which some track takes from another.
    trajectory: latents after each step, of plans that record them. ended: whether it leaves before its last step.
    """

    plan: EditPlan
    track: int
    row: int
    taken: dict[str, Tensor]
    noise: Tensor | None
    prompts: Mapping[str, Tensor]
    step: int = 0
    trajectory: list[Tensor] = field(default_factory=list)
    ended: bool = False

    @property
    def done(self) -> bool:
        return self.ended or self.step >= self.plan.steps

    @property
    def stops_guidance(self) -> bool:
        """Whether the next step is the first for which guidance is skipped."""
        plan = self.plan
        return plan.guidance > 1 and self.step >= plan.steps - held_steps(1 - plan.guidance_until, plan.steps)


class Batch:
    """Edits that share calls: one latent size, one number of tokens, one kind of conditioning.

    runner: open while edits are joined and run. max_rows: of all edits here. projections: what keeps those of the
    runner. whole: every buffer is there from the first edit on and every part of a step is computed for all
    tracks, so that the step can be captured: nothing depends on which edits are here but `key`.
    """

    def __init__(
        self,
        runner: Runner,
        max_rows: int,
        *,
        projections: ProjectionCache | None = None,
        whole: bool = False,
    ) -> None:
        self.runner, self.max_rows, self.whole = runner, max_rows, whole
        self.seats: list[Seat] = []
        self.tracks: dict[str, Tensor] = {}
        self.rows: dict[str, Tensor] = {}
        self.sizes = runner.capabilities.rows
        if whole and self.sizes is None:
            self.sizes = tuple(1 << power for power in range((max_rows - 1).bit_length() + 1))
        self.version = 0
        self._projections = projections
        self._room = size_for(max_rows, self.sizes) if whole else 0

    @property
    def used_rows(self) -> int:
        return sum(seat.plan.rows for seat in self.seats)

    def filled(self, rows: int) -> int:
        """Rows that a call of so many really takes."""
        return size_for(rows, self.sizes)

    # -- joining and leaving

    @torch.inference_mode()
    def join(self, plan: EditPlan) -> Seat:
        """Give an edit a place behind the others: one that fits the model, of their `kind_of`, for which there is room.

        What it brings goes to the device in one copy; nothing of the device is waited for.
        """
        rows, track, row = plan.rows, sum(seat.plan.tracks for seat in self.seats), self.used_rows
        of_tracks, of_rows = self._track_values(plan), self._row_values(plan)
        there = to_device(of_tracks | of_rows | _by_step(plan), self.runner.device)
        prompts, changing = self._prompts(plan, there), {}
        if "unconditional_steps" in there:
            steps = self.runner.condition(there["unconditional_steps"])
            changing = {name: value.unsqueeze(1) for name, value in steps.items()}
        seat = Seat(plan, track, row, _taken(plan), there.get("noise_steps"), changing)
        self._reserve(row + rows)
        for name in of_tracks:
            self._write(self.tracks, name, there[name], track)
        for name, value in (prompts | {name: there[name] for name in of_rows}).items():
            self._write(self.rows, name, value, row)
        self.tracks["guidance_rows"][track : track + plan.tracks] += row
        self.rows["track"][row : row + rows] += track
        self.seats.append(seat)
        return seat

    @torch.inference_mode()
    def leave(self, seat: Seat) -> EditOutcome:
        """What the edit has come to, in tensors of its own; those behind it move up."""
        plan, own = seat.plan, slice(seat.track, seat.track + seat.plan.tracks)

        def of(name: str, wanted: bool = True) -> Tensor | None:
            return self.tracks[name][own].clone() if wanted else None

        seen, edited = plan.needs_maps and seat.step > 0, plan.cross_attention is not None
        outcome = EditOutcome(
            latents=self.latents(seat),
            maps=self.tracks["map_sum"][own] / seat.step if seen else None,
            features=self.tracks["feature_sum"][own] / seat.step if seen else None,
            last_features=of("features", seen),
            word_steps=of("cross_attention.word_steps", edited),
            spatial_map=of("cross_attention.spatial_map", edited),
            steps=seat.step,
            trajectory=torch.stack(seat.trajectory) if seat.trajectory else None,
            broken_step=of("broken_step"),
        )
        self.drop(seat)
        return outcome

    @torch.inference_mode()
    def drop(self, seat: Seat) -> None:
        """Keep nothing of an edit; those behind it move up."""
        place = self.seats.index(seat)
        tracks, rows = seat.plan.tracks, seat.plan.rows
        all_tracks, all_rows = sum(s.plan.tracks for s in self.seats), self.used_rows
        for buffers, first, count, end in (
            (self.tracks, seat.track, tracks, all_tracks),
            (self.rows, seat.row, rows, all_rows),
        ):
            for name, buffer in buffers.items():
                buffer[first : end - count] = buffer[first + count : end].clone()
                buffer[end - count : end] = _neutral(name)
        self.tracks["guidance_rows"][seat.track : all_tracks - tracks] -= rows
        self.rows["track"][seat.row : all_rows - rows] -= tracks
        del self.seats[place]
        for other in self.seats[place:]:
            other.track, other.row = other.track - tracks, other.row - rows

    @torch.inference_mode()
    def stop_guidance(self, seat: Seat) -> Seat:
        """Go on with an edit's conditional rows alone: it leaves and joins again, with its state, behind the others."""
        kept = {
            name: self.tracks[name][seat.track : seat.track + seat.plan.tracks].clone()
            for name in (*STATE, *FOUND)
            if name in self.tracks
        }
        self.drop(seat)
        again = self.join(seat.plan.without_guidance())
        for name, value in kept.items():
            self._write(self.tracks, name, value, again.track)
        again.step, again.trajectory = seat.step, seat.trajectory
        return again

    # -- a step

    @torch.inference_mode()
    def feed(self, seats: Sequence[Seat]) -> None:
        """Copy what is too large for tables: this step's noise, known latents and changing prompts."""
        for seat in seats:
            plan = seat.plan
            if seat.noise is not None:
                own = self.tracks["noise"][seat.track : seat.track + plan.tracks]
                own.copy_(seat.noise[seat.step], non_blocking=True)
            for name, value in seat.prompts.items():
                first_rows = self.rows[PROMPT + name][seat.row : seat.row + plan.rows : plan.guidance]
                first_rows.copy_(value[seat.step].expand_as(first_rows), non_blocking=True)

    def call(self, seats: Sequence[Seat]) -> Call:
        """The next step of neighbouring edits."""
        return Call(self, seats)

    def stepped(self, seats: Sequence[Seat]) -> None:
        """Count a step of these edits, whose call went well."""
        for seat in seats:
            seat.step += 1
            if seat.plan.record:
                seat.trajectory.append(self.latents(seat))

    def latents(self, seat: Seat) -> Tensor:
        """A copy of an edit's latents, [K, C, h, w] float32."""
        return self.tracks["latents"][seat.track : seat.track + seat.plan.tracks].clone()

    @torch.inference_mode()
    def set_latents(self, seat: Seat, latents: Tensor) -> None:
        """Go on from other latents of the same shape. Raises `PlanError` for others."""
        own = self.tracks["latents"][seat.track : seat.track + seat.plan.tracks]
        if latents.shape != own.shape:
            raise PlanError(
                f"got latents {tuple(latents.shape)}, wanted {tuple(own.shape)}, as they were given"
            )
        own.copy_(latents)

    # -- buffers

    def _reserve(self, rows: int) -> None:
        """Room for so many rows, and as many tracks: in a call without guidance every row is a track."""
        if rows <= self._room:
            return
        self._room, self.version = max(rows, 2 * self._room), self.version + 1
        for buffers in (self.tracks, self.rows):
            for name, old in buffers.items():
                buffers[name] = self._empty(name, old)
                buffers[name][: len(old)] = old

    def _empty(self, name: str, like: Tensor) -> Tensor:
        shape = (max(self._room, 1), *like.shape[1:])
        return torch.full(shape, _neutral(name), dtype=like.dtype, device=self.runner.device)

    def _write(self, buffers: dict[str, Tensor], name: str, value: Tensor, first: int) -> None:
        known = buffers.get(name)
        if known is None or any(old < new for old, new in zip(known.shape[1:], value.shape[1:], strict=True)):
            shape = value.shape[1:] if known is None else map(max, known.shape[1:], value.shape[1:])
            self.version += 1
            buffers[name] = self._empty(name, value.new_empty((1, *shape)))
            if known is not None:
                buffers[name][tuple(slice(0, side) for side in known.shape)] = known
        place = buffers[name][first : first + len(value)]
        if not value.is_meta:
            place[tuple(slice(0, side) for side in value.shape)].copy_(value)
        elif name in STATE:  # which calls write in places that are free, too
            place.fill_(_neutral(name))

    def _track_values(self, plan: EditPlan) -> dict[str, Tensor]:
        """What an edit's tracks begin with, by buffer, where the plan's tensors lie; see `_nothing`."""
        specs, tracks, guidance = self.runner.specs, plan.tracks, plan.guidance
        pixels = math.prod(specs.map_size(*plan.latents.shape[-2:]))
        all_tracks = torch.arange(tracks, device="cpu")
        own = torch.arange(tracks * guidance, device="cpu").reshape(tracks, guidance)
        wider = (0, MAX_GUIDANCE - guidance)
        values = {
            "latents": plan.latents.float(),
            "columns": _columns(plan).float(),
            "step": _nothing(tracks, dtype=torch.int64),
            "steps": torch.full_like(all_tracks, plan.steps),
            "broken_step": _nothing(tracks, dtype=torch.int64),
            "guidance_rows": torch.cat([own, own[:, -1:].expand(-1, wider[1])], 1),
            "guidance_weights": F.pad(plan.guidance_weights.float(), wider),
            "conditional": torch.full_like(all_tracks, guidance - 1),
            "source": torch.tensor(plan.source_track, device="cpu") - all_tracks,
        }
        if self.whole or plan.needs_maps:
            values["map_sum"] = _nothing(tracks, pixels, plan.tokens)
            values["feature_sum"] = values["features"] = _nothing(tracks, pixels, specs.feature_channels)
        if self.whole or plan.schedule.looks_back:
            values["history"] = _nothing(*plan.latents.shape)
        if self.whole or plan.noise is not None or plan.source_latents is not None:
            values["noise"] = _nothing(*plan.latents.shape)
        return values | self._part_values(plan, pixels)

    def _part_values(self, plan: EditPlan, pixels: int) -> dict[str, Tensor]:
        """The tensors of a plan's parts, in the dtypes in which a step reads them."""
        sizes = {
            "K": plan.tracks,
            "N": plan.tokens,
            "P": pixels,
            "2": 2,
            "L": len(self.runner.specs.self_layers),
        }
        sizes |= {"h": plan.latents.shape[2], "w": plan.latents.shape[3]}
        given = {name: value for name, value in plan.tensors().items() if "." in name and name in FIELDS}
        wanted = set(given) if not self.whole else {name for name in FIELDS if "." in name}
        if plan.cross_attention is not None:
            wanted.add("cross_attention.spatial_map")
        if plan.adaptive is not None:
            wanted |= {"self_attention.query", "self_attention.key"}
        if plan.local_blend is not None:
            wanted |= {"local_blend.known", "local_blend.places"}
        values = {}
        for name in wanted - {"self_attention.layers"}:
            entry = FIELDS[name]
            dtype = {bool: torch.bool, int: torch.int64}.get(type(entry.neutral), torch.float32)
            nothing = _nothing(*(sizes[letter] for letter in entry.axes), dtype=dtype)
            values[name] = given[name].to(dtype) if name in given else nothing
        return values

    def _row_values(self, plan: EditPlan) -> dict[str, Tensor]:
        """What an edit's rows begin with, by buffer, but for their prompts."""
        tracks, guidance = plan.tracks, plan.guidance
        row = torch.arange(tracks * guidance, device="cpu")
        track, source = row // guidance, torch.tensor(plan.source_track, device="cpu")
        values = {"track": track, "is_conditional": row % guidance == guidance - 1}
        values["like"] = (source[track] - track) * guidance
        for name, value in plan.conditioning.items():
            values[CONDITIONING + name] = value.flatten(0, 1).to(torch.float32)
        return values

    def _prompts(self, plan: EditPlan, there: Mapping[str, Tensor]) -> dict[str, Any]:
        """Prompts as the runner wants them, by buffer."""
        hidden, host = (one.flatten(0, 1) for one in (there["prompts"], plan.encoder_hidden_states))
        if self._projections is None:
            found = self.runner.condition(hidden)
        else:
            found = self._projections.condition(hidden, host)
        return {PROMPT + name: value for name, value in found.items()}


class Call:
    """One step of neighbouring edits of a batch, as views of its buffers.

    Where the runner wants sizes, rows are filled up to the next with ones that take from themselves.
    """

    def __init__(self, batch: Batch, seats: Sequence[Seat]) -> None:
        self.batch, self.seats, plans = batch, seats, [seat.plan for seat in seats]
        whole, all_controls = batch.whole, batch.runner.capabilities.all_controls
        self.first_row, self.first_track = seats[0].row, seats[0].track
        self.used = sum(plan.rows for plan in plans)
        self.size = size_for(self.used, batch.sizes)
        batch._reserve(self.first_row + self.size)
        filled = whole and len(seats) == len(batch.seats)  # places behind these edits are free
        tracks = self.size if filled else sum(plan.tracks for plan in plans)
        self.tracks = {n: v[self.first_track : self.first_track + tracks] for n, v in batch.tracks.items()}
        self.rows = {n: v[self.first_row : self.first_row + self.size] for n, v in batch.rows.items()}
        self.edited = all_controls or any(plan.edited for plan in plans)
        self.edits = None if filled else self._edited_tracks()
        self.maps = whole or any(plan.needs_maps for plan in plans)
        self.spatial = whole or all_controls or any(_has_spatial_map(plan) for plan in plans)
        self.adaptive = any(plan.adaptive is not None for plan in plans) or (whole and self.edited)
        self.blends = whole or any(plan.local_blend is not None for plan in plans)
        self.adds_noise = whole or any(seat.noise is not None for seat in seats)
        self.looks_back = whole or any(plan.schedule.looks_back for plan in plans)
        self.scales = whole or any(bool((plan.schedule.input_scale != 1).any()) for plan in plans)
        self.self_layers = self._self_layers()
        self.now: dict[str, Tensor] = {}

    @property
    def key(self) -> tuple[Any, ...]:
        """What a captured step depends on besides the buffers."""
        layers = tuple(self.self_layers[name] for name in SELF_NAMES)
        return self.size, self.edited, layers

    @property
    def outputs(self) -> tuple[str, ...]:
        """What is asked of the runner."""
        return OUTPUT_NAMES if self.maps else OUTPUT_NAMES[:1]

    def inputs(self) -> dict[str, Tensor]:
        """The runner's inputs by name, each track at its own step."""
        rows, tracks = self.rows, self.tracks
        own = torch.arange(self.size, device=rows["track"].device)
        mine = own < self.used
        track = torch.where(mine, rows["track"] - self.first_track, 0)
        now = self.now = self._now()
        sample = tracks["latents"].index_select(0, track)
        if self.scales:
            sample = sample * now["input_scale"].index_select(0, track).reshape(-1, 1, 1, 1)
        brought = _within(CONDITIONING, rows)
        if CHANNELS in brought:
            sample = torch.cat([sample, brought.pop(CHANNELS)], dim=1)
        sample = sample.to(self.batch.runner.dtype)
        inputs = {"sample": sample, "timestep": now["timesteps"].index_select(0, track)}
        inputs |= _within(PROMPT, rows) | brought
        like = torch.where(mine, rows["like"], 0)
        inputs |= self._self_rows(own, like, track)
        if self.maps or self.edited:
            inputs["map_row"] = self._watched()
        if self.edited:
            inputs |= self._edit(inputs["map_row"])
        return inputs

    def _watched(self) -> Tensor:
        """[K]: the conditional row of each track; of those that a call is filled up with row 0, which is not edited."""
        rows = self.tracks["guidance_rows"] - self.first_row
        return rows.gather(1, self.tracks["conditional"].unsqueeze(1)).squeeze(1)

    def _edit(self, watched: Tensor) -> dict[str, Tensor]:
        """What edited rows take from their sources, an entry a track that is edited, or, captured, a track."""
        tracks = self.tracks
        part, edits = _within("cross_attention.", tracks), self.edits
        if not part:  # no edit here, and a runner that wants all controls
            (height, width), tokens, device = self.map_size, self.seats[0].plan.tokens, watched.device
            none = Controls.identity(
                batch=1, tokens=tokens, pixels=height * width, layers=0, device=device
            ).as_dict()
            return {name: none[name] for name in EDIT_NAMES}
        step, steps = tracks["step"].unsqueeze(1), tracks["steps"].unsqueeze(1)
        held = step < held_steps(part["word_steps"], steps)
        if "word_starts" in part:
            held = held & (step >= held_steps(part["word_starts"], steps))
        entries = {
            "edited_row": watched,
            "source_row": watched.index_select(0, self._source()),
            "token_map": part["token_map"],
            "own_weight": part["own_weight"],
            "spatial_weight": (1 - part["own_weight"]) * (~held) * part["strength"].unsqueeze(1),
        }
        if self.spatial:
            entries["spatial_map"] = part["spatial_map"]
        if edits is None:
            return entries
        return {name: entry.index_select(0, edits) for name, entry in entries.items()}

    def _edited_tracks(self) -> Tensor:
        """[E] int64: the tracks that take from others; where there is none the first, which takes from itself."""
        edited = [
            seat.track - self.first_track + track
            for seat in self.seats
            for track, source in enumerate(seat.plan.source_track)
            if track != source
        ]
        return torch.tensor(edited or [0], device=self.batch.runner.device)

    def _self_rows(self, own: Tensor, like: Tensor, track: Tensor) -> dict[str, Tensor]:
        """[L, rows] each: the row that each layer takes queries, keys and values from."""
        tables, tracks, runner = {}, self.tracks, self.batch.runner
        for name, part in SELF_FIELDS.items():
            if not self.self_layers[name]:
                if runner.capabilities.all_controls:
                    tables[name] = own.expand(len(runner.specs.self_layers), -1).contiguous()
                continue
            interval, step = tracks[f"self_attention.{part}"], tracks["step"].unsqueeze(1)
            takes = (interval[..., 0] <= step) & (step < interval[..., 1])  # [K, L]
            acts = self.rows["is_conditional"]
            if "self_attention.all_rows" in tracks:
                acts = acts | tracks["self_attention.all_rows"].index_select(0, track)
            taken = takes.index_select(0, track) & acts.unsqueeze(1)
            tables[name] = (own.unsqueeze(1) + torch.where(taken, like.unsqueeze(1), 0)).T.contiguous()
        return tables

    def observe(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """New sums of maps and features, and with them tau, S and intervals of FWT and DPS; nothing is written yet."""
        if not self.maps:
            return {}
        tracks = self.tracks
        maps, features = outputs["cross_attention_maps"].float(), outputs["visual_features"].float()
        seen = {
            "map_sum": tracks["map_sum"] + maps,
            "feature_sum": tracks["feature_sum"] + features,
            "features": features,
        }
        return seen | (self._found(seen) if self.adaptive else {})

    def _found(self, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Eq. 5 to 7 and 9 over what has been seen, for tracks whose plans ask for it."""
        tracks, count = self.tracks, (self.tracks["step"] + 1).float().reshape(-1, 1, 1)
        part = _within("adaptive.", tracks)
        maps, features = seen["map_sum"] / count, seen["feature_sum"] / count
        words, spatial = observe(maps, features, part, self._source(), self.map_size, self._grow("adaptive"))
        found = {}
        for name, new, acts in (
            ("cross_attention.word_steps", words.word_steps, part["temporal"]),
            ("cross_attention.spatial_map", spatial, part["spatial"].unsqueeze(1)),
        ):
            found[name] = torch.where(acts, new, tracks[name])
        stop = held_steps(words.default_steps, tracks["steps"]).long()
        interval = torch.stack([torch.zeros_like(stop), stop], 1).unsqueeze(1)  # [K, 1, 2]
        for name in ("self_attention.query", "self_attention.key"):
            found[name] = torch.where(part["self_layers"].unsqueeze(2), interval, tracks[name])
        return found

    def update(self, noise_pred: Tensor, seen: Mapping[str, Tensor]) -> dict[str, Any]:
        """The arguments of `guided_step`, by name."""
        tracks, now = self.tracks, self.now
        arguments = self._combined(noise_pred, now["sample_weight"], now["output_weight"])
        if self.adds_noise:
            arguments |= {"noise": tracks["noise"], "noise_weight": now["noise_weight"]}
        if self.looks_back:
            kept = tracks["history"]
            if self.adds_noise:
                kept = tracks["noise"] * now["noise_weight"].reshape(-1, 1, 1, 1) + kept
            arguments |= {"noise": kept, "noise_weight": torch.ones_like(now["noise_weight"])}
        if self.blends:
            arguments["blend_mask"], arguments["blend_source"] = self._mask(seen["map_sum"])
        return arguments

    def history(self, noise_pred: Tensor) -> dict[str, Any] | None:
        """The same of what this step leaves to the next; None where no solver looks back."""
        if not self.looks_back:
            return None
        now = self.now
        return self._combined(noise_pred, now["history_sample_weight"], now["history_output_weight"])

    def _combined(self, noise_pred: Tensor, sample_weight: Tensor, output_weight: Tensor) -> dict[str, Any]:
        return {
            "noise_pred": noise_pred,
            "latents": self.tracks["latents"],
            "guidance_rows": self.tracks["guidance_rows"] - self.first_row,
            "guidance_weights": self.tracks["guidance_weights"],
            "sample_weight": sample_weight,
            "output_weight": output_weight,
        }

    def advance(self, latents: Tensor, history: Tensor | None, seen: Mapping[str, Tensor]) -> None:
        """Write what a step has made of these edits. Nothing was written before."""
        tracks = self.tracks
        broken = (tracks["broken_step"] < 0) & ~latents.isfinite().flatten(1).all(1)
        tracks["broken_step"].copy_(torch.where(broken, tracks["step"], tracks["broken_step"]))
        tracks["latents"].copy_(latents)
        if history is not None:
            tracks["history"].copy_(history)
        for name, value in seen.items():
            tracks[name].copy_(value)
        tracks["step"].add_(1)

    # -- what a step reads

    @property
    def map_size(self) -> tuple[int, int]:
        return self.batch.runner.specs.map_size(*self.tracks["latents"].shape[-2:])

    def _now(self) -> dict[str, Tensor]:
        """The schedules' numbers at each track's own step, [K] each."""
        columns, steps = self.tracks["columns"], self.tracks["steps"]
        at = torch.minimum(self.tracks["step"], steps - 1).clamp_min(0).reshape(-1, 1, 1)
        found = columns.gather(2, at.expand(-1, len(COLUMNS), 1)).squeeze(2).T.contiguous()
        return dict(zip(COLUMNS, found.unbind(0), strict=True))

    def _source(self) -> Tensor:
        distance = self.tracks["source"]
        return torch.arange(len(distance), device=distance.device) + distance

    def _grow(self, part: str) -> int:
        """The widest growth of this step's edits."""
        if self.batch.whole:
            return MAX_GROW
        parts = [getattr(seat.plan, part) for seat in self.seats]
        return max((int(one.grow.max()) for one in parts if one is not None), default=0)

    def _mask(self, map_sum: Tensor) -> tuple[Tensor, Tensor]:
        """[K, 1, h, w], 1 where a track keeps its own latents, and the track [K] that it has the others of."""
        tracks, source = self.tracks, self._source()
        part = _within("local_blend.", tracks)
        acts = tracks["step"] >= held_steps(part["start"], tracks["steps"])
        places = torch.maximum(
            word_places(map_sum, part["token_weights"]),
            word_places(map_sum.index_select(0, source), part["source_weights"]),
        )
        places = torch.where(part["known"].unsqueeze(1), part["places"], places)
        heat = widened(places, self.map_size, part["grow"], self._grow("local_blend"))
        heat = heat.unflatten(1, (1, *self.map_size))
        heat = F.interpolate(heat, tuple(tracks["latents"].shape[-2:]), mode="nearest")
        mask = (heat > part["threshold"].reshape(-1, 1, 1, 1)).to(places.dtype)
        own = torch.arange(len(source), device=source.device)
        mask = torch.where(acts.reshape(-1, 1, 1, 1), mask, 1.0)
        if "mask" in part:
            mask = mask * part["mask"].unsqueeze(1)
            acts = acts | (part["mask"] < 1).flatten(1).any(1)
        return mask, torch.where(acts, source, own)

    def _self_layers(self) -> dict[str, tuple[int, ...]]:
        """Per control, the layers in which some row takes from another: at this step, or for capture at any."""
        found = {}
        for name in SELF_NAMES:
            layers = torch.zeros(len(self.batch.runner.specs.self_layers), dtype=torch.bool, device="cpu")
            for seat in self.seats:
                if name in seat.taken:
                    start, stop = seat.taken[name].unbind(1)
                    now = (start <= seat.step) & (seat.step < stop)
                    layers |= start < stop if self.batch.whole else now
            found[name] = tuple(layers.nonzero().flatten().tolist())
        return found


def observe(
    maps: Tensor,
    features: Tensor,
    knobs: Mapping[str, Tensor],
    source: Tensor,
    map_size: tuple[int, int],
    max_grow: int = MAX_GROW,
) -> tuple[Any, Tensor]:
    """What FWT finds (`WordRelation`) and S [K, P] from averaged maps [K, P, N] and features [K, P, V].

    knobs: the tensors of `Adaptive` by name. source: [K] int64, each track's source. With a factor above 1 S is cut off
    at 1: a weight above that would carry the edit beyond the target's own maps.
    """
    relation = RelationKnobs(**{name: knobs[name] for name in RelationKnobs._fields})
    words = word_relation(maps, features, knobs["key_tokens"], knobs["word_of_token"], relation)
    factor = knobs["lambda_spatial"]
    alike = spatial_similarity(features, words.key_embedding, torch.ones_like(factor), knobs["centre"])
    both = torch.maximum(alike, alike.index_select(0, source))
    spatial = (factor.unsqueeze(1) * torch.where(knobs["joined"].unsqueeze(1), both, alike)).clamp(max=1)
    spatial = widened(spatial, map_size, knobs["grow"], max_grow)
    limit = knobs.get("limit")
    return words, spatial if limit is None else spatial * limit


def word_places(maps: Tensor, token_weights: Tensor) -> Tensor:
    """[K, P] in 0..1, where chosen tokens are looked at, as a share of the peak; 0 for a track that has none.

    maps [K, P, N]: averages, any positive factor; token_weights [K, N]. Of several tokens each by its own peak: of a
    sum, which Prompt-to-Prompt's code takes, the one that is looked at most would blind the mask to the others.
    """
    chosen = maps * (token_weights != 0).to(maps.dtype).unsqueeze(1)  # [K, P, N]
    return (chosen / chosen.amax(1, keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)).amax(2)


def widened(places: Tensor, map_size: tuple[int, int], cells: Tensor, max_cells: int = MAX_GROW) -> Tensor:
    """Every pixel takes the largest value within so many cells of it to all sides, [K, P] to [K, P].

    cells: [K] int64, at most max_cells. map_size: height and width, whose product is P.
    """
    heat = places.unflatten(1, (1, *map_size))
    for count in range(max_cells):
        wider = F.max_pool2d(heat, 3, stride=1, padding=1)
        heat = torch.where((cells > count).reshape(-1, 1, 1, 1), wider, heat)
    return heat.flatten(1)


def kind_of(plan: EditPlan) -> tuple[Any, ...]:
    """Plans of one kind can share a call: channels, height and width of latents, tokens, what rows bring besides."""
    extra = tuple(sorted((name, tuple(value.shape[2:])) for name, value in plan.conditioning.items()))
    return (*plan.latents.shape[1:], plan.tokens, extra)


def _has_spatial_map(plan: EditPlan) -> bool:
    """Whether S of an edit may be other than 1."""
    edit = plan.cross_attention
    return edit is not None and (edit.spatial_map is not None or plan.adaptive is not None)


def size_for(rows: int, sizes: Sequence[int] | None) -> int:
    """Rows that a call of so many is filled up to; sizes: those that the runner takes, None: any."""
    return rows if sizes is None else min((size for size in sizes if size >= rows), default=rows)


def _within(prefix: str, buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The buffers whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in buffers.items() if name.startswith(prefix)}


def _columns(plan: EditPlan) -> Tensor:
    """[K, columns, T]: the schedule of each track. A track whose latents are known takes them as its noise, alone."""
    schedule = plan.schedule
    nothing = torch.zeros_like(schedule.timesteps)
    table = [getattr(schedule, name) for name in COLUMNS]
    columns = torch.stack([nothing if column is None else column for column in table])
    if not schedule.stochastic:
        columns[COLUMNS.index("noise_weight")] = 0
    columns = columns.expand(plan.tracks, -1, -1).clone()
    if plan.source_latents is not None:
        columns[0, 2:] = 0
        columns[0, COLUMNS.index("noise_weight")] = 1
    return columns


def _nothing(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of a buffer that is to be there, and in which an edit has nothing: a shape and a dtype, without values."""
    return torch.empty(shape, dtype=dtype, device="meta")


def _by_step(plan: EditPlan) -> dict[str, Tensor]:
    """What does not go into buffers as it is: prompts, and what changes from step to step.

    noise_steps [T, K, C, h, w]: what a step adds; of a known track what it is to be.
    """
    found = {"prompts": plan.encoder_hidden_states}
    if plan.unconditional_steps is not None:
        found["unconditional_steps"] = plan.unconditional_steps
    noise, known = plan.noise if plan.schedule.stochastic else None, plan.source_latents
    if noise is not None:
        noise = noise if noise.ndim == 5 else noise.unsqueeze(1).expand(-1, plan.tracks, -1, -1, -1)
        found["noise_steps"] = noise.float()
    if known is not None:
        if noise is None:
            noise = torch.zeros(plan.steps, *plan.latents.shape, dtype=torch.float32, device="cpu")
        found["noise_steps"] = torch.cat([known.unsqueeze(1), noise[:, 1:]], 1).float()
    return found


def _taken(plan: EditPlan) -> dict[str, Tensor]:
    """By self-attention control, [L, 2] on the host: first and last step of all tracks."""
    taken, part = {}, plan.self_attention or SelfEdit()
    for name, entry in SELF_FIELDS.items():
        value = getattr(part, entry)
        if value is None:
            continue
        if value.device.type != "cpu":  # reading it would wait for the device
            may = value.new_ones((), device="cpu") if part.layers is None else part.layers.unsqueeze(2)
            value = torch.tensor([0, plan.steps], device="cpu").expand(value.shape) * may
        never = value[..., 0] >= value[..., 1]
        start = torch.where(never, plan.steps, value[..., 0]).amin(0)
        taken[name] = torch.stack([start, torch.where(never, 0, value[..., 1]).amax(0)], 1)
    if plan.adaptive is not None:
        layers = plan.adaptive.self_layers.cpu().any(0)
        always = torch.tensor([[0, plan.steps]], dtype=torch.int64, device="cpu").repeat(len(layers), 1)
        for name in SELF_NAMES[:2]:
            own = taken.get(name, torch.zeros_like(always))
            taken[name] = torch.where(layers.unsqueeze(1), always, own)
    return taken


def _neutral(name: str) -> float | bool:
    if name in FIELDS and "." in name:
        value = FIELDS[name].neutral
        assert value is not None
        return value
    return {"broken_step": -1, "is_conditional": False}.get(name, 0)
