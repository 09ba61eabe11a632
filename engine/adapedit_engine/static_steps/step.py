"""One step of all edits in a slot: every tensor lies where it lay at the last step, and the host is asked for nothing.

UNet, guidance, scheduler step, local blends and map sums, with the controls of every step of every edit in tables that
a step counter on the device points into. So a step can be captured once and replayed, whatever edits the buffers are
filled with.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping

import torch
from torch import Tensor

from adapedit_engine.blend import blend_mask, widened, word_places
from adapedit_engine.rows import held, spatial_weight
from adapedit_engine.runners import Runner
from adapedit_engine.static_steps.inputs import PROMPT
from adapedit_engine.static_steps.shape import StepShape
from adapedit_engine.unet import OUTPUT_NAMES
from adapedit_kernels import guided_step

EDIT = ("source_row", "token_map", "own_weight", "spatial_map")


class StepBuffers:
    """Tensors by name, see `inputs.gather`, and the step over them.

    runner: open. A call that fails leaves the buffers as they were: they are written to when everything is known.
    """

    def __init__(self, shape: StepShape, runner: Runner, tensors: Mapping[str, Tensor]) -> None:
        # The runner keeps its slots, and is not to be kept by them.
        self.shape, self._runner = shape, weakref.ref(runner)
        # A runner may want its inputs to lie apart, and nothing here may change what was gathered.
        self.tensors = {
            name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill with other edits, of the same shape."""
        for name, tensor in tensors.items():
            self.tensors[name].copy_(tensor)

    def step(self) -> None:
        """Run every edit by one step, in place."""
        tensors, shape = self.tensors, self.shape
        # A padding track counts on beyond the tables.
        at = tensors["step"].clamp(max=shape.steps - 1)
        runner = self._runner()
        assert runner is not None
        outputs = runner.infer(self._inputs(at), OUTPUT_NAMES if shape.maps else OUTPUT_NAMES[:1])
        after = {"step": tensors["step"] + 1}
        if shape.maps:
            after |= self._sums(outputs)
        mask = source = None
        if shape.blend_grow >= 0:
            mask, source = self._mask(after["map_sum"], at)
        noise_pred = outputs["noise_pred"]
        sample_weight, output_weight = (_at(tensors[name], at) for name in ("sample_weight", "output_weight"))
        after["latents"] = self._guided(
            noise_pred, sample_weight, output_weight, *self._added(at), mask, source
        )
        if shape.looks_back:
            table = tensors["history_weights"]
            after["history"] = self._guided(noise_pred, _at(table[:, 0], at), _at(table[:, 1], at))
        self.load(after)

    def _guided(
        self, noise_pred: Tensor, sample_weight: Tensor, output_weight: Tensor, *more: Tensor | None
    ) -> Tensor:
        """`guided_step` of the buffers' latents; more: its arguments from the noise on."""
        tensors = self.tensors
        return guided_step(
            noise_pred,
            tensors["latents"],
            tensors["guidance_rows"],
            tensors["guidance_weights"],
            sample_weight,
            output_weight,
            *more,
            check_values=False,
        )

    def _inputs(self, at: Tensor) -> dict[str, Tensor]:
        tensors, shape = self.tensors, self.shape
        row_at = at.index_select(0, tensors["track_of_row"])
        sample = tensors["latents"].index_select(0, tensors["track_of_row"])
        if shape.scaled:
            sample = sample * _at(tensors["input_scale"], row_at).reshape(-1, 1, 1, 1)
        sample = sample.to(shape.dtype)
        if "conditioning_channels" in tensors:
            sample = torch.cat([sample, tensors["conditioning_channels"]], dim=1)
        inputs = {"sample": sample, "timestep": _at(tensors["timestep"], row_at)}
        inputs |= {
            name.removeprefix(PROMPT): tensor for name, tensor in tensors.items() if name.startswith(PROMPT)
        }
        for name in shape.selves:
            table = tensors[name]  # [T, L, B]
            inputs[name] = table.gather(0, row_at.expand(1, table.shape[1], -1)).squeeze(0)
        if shape.edited:
            inputs |= {name: tensors[name] for name in EDIT}
            held_now = held(row_at.unsqueeze(1), tensors["word_steps"], tensors["steps"])
            inputs["spatial_weight"] = spatial_weight(held_now, tensors["own_weight"], tensors["strength"])
        return inputs

    def _sums(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        rows, tensors = self.tensors["conditional_row"], self.tensors
        maps = outputs["cross_attention_maps"].index_select(0, rows).float()
        features = outputs["visual_features"].index_select(0, rows).float()
        return {"map_sum": tensors["map_sum"] + maps, "feature_sum": tensors["feature_sum"] + features}

    def _added(self, at: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What a step adds to the latents, [K, C, h, w], with its weight [K]: noise, and what the last step left."""
        tensors, shape = self.tensors, self.shape
        if not shape.noise:
            history = tensors.get("history")
            return history, None if history is None else torch.ones_like(tensors["guidance_weights"][:, 0])
        weight = _at(tensors["noise_weight"], at)
        if not shape.looks_back:
            return tensors["noise"], weight
        noise = tensors["noise"] * weight.reshape(-1, 1, 1, 1)
        return noise + tensors["history"], torch.ones_like(weight)

    def _mask(self, map_sum: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """[K, 1, h, w], 1 where a track keeps its own latents, and the track [K] that it has the others of."""
        tensors, shape = self.tensors, self.shape
        own = torch.arange(shape.tracks, device=at.device)
        acts = tensors["step"] >= tensors["blend_start"]
        source = torch.where(acts, tensors["blend_source"], own)
        places = word_places(map_sum, tensors["blend_tokens"])
        places = torch.where(tensors["blend_known"].unsqueeze(1), tensors["blend_places"], places)
        heat = places
        for cells in range(1, shape.blend_grow + 1):
            grown = widened(places, shape.map_size, cells)
            heat = torch.where((tensors["blend_grow"] == cells).unsqueeze(1), grown, heat)
        mask = blend_mask(
            heat,
            tensors["blend_source"],
            map_size=shape.map_size,
            latent_size=(shape.size[1], shape.size[2]),
            threshold=tensors["blend_threshold"].reshape(-1, 1, 1, 1),
            grow=0,
        )
        return torch.where(acts.reshape(-1, 1, 1, 1), mask, torch.ones_like(mask)), source


def _at(table: Tensor, at: Tensor) -> Tensor:
    """[T, n] at each one's own step, [n]."""
    return table.gather(0, at.unsqueeze(0)).squeeze(0)
