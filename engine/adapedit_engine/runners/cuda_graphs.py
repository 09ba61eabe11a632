"""A whole step as one CUDA graph: UNet, guidance, scheduler step, local blends, map sums, and what the single pass
finds in them, replayed without the host.

`StaticSteps` is tested on the CPU; the capture of `GraphedSteps` was written for CUDA and not run on one yet, and
nothing else depends on either. The controls of all steps lie on the device and
are indexed there by a step counter that the graph itself raises, so that a replay takes no arguments at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adapedit_engine.controls import SELF_NAMES
from adapedit_engine.layout import Layout
from adapedit_engine.loop import EditState
from adapedit_engine.plan import PlanError
from adapedit_engine.rows import RowTables
from adapedit_engine.runners import Runner, RunnerError
from adapedit_engine.runners.static_parts import StaticBlends, StaticFindings
from adapedit_engine.unet import OUTPUT_NAMES
from adapedit_kernels import guided_step

WARM_UP = 3


class StaticSteps:
    """Edits that begin together, with as many steps, in buffers that stay where they are.

    states: fresh ones of `begin`, of plans without input scaling, recording, solver that looks back, early end of
    guidance and reuse between steps: those change what is computed from step to step, and run through `tick`.
    runner: open.
    """

    @torch.inference_mode()
    def __init__(self, states: Sequence[EditState], runner: Runner) -> None:
        plans = [state.plan for state in states]
        if len({plan.steps for plan in plans}) != 1 or any(state.step_index for state in states):
            raise PlanError("a graph of steps takes fresh edits with as many steps; run others through tick")
        tables = [state.tables for state in states]
        if any(
            p.record or p.reuses or t.input_scale is not None or t.history is not None or t.late is not None
            for p, t in zip(plans, tables, strict=True)
        ):
            raise PlanError(
                "a graph of steps takes no input scaling, record, solver that looks back, guidance_until, "
                "feature_interval or cross_attention_until; run such edits through tick"
            )
        self._steps, self._runner = plans[0].steps, runner
        self._layout = Layout.of(tables, runner)
        # Every step's controls, stacked: gathering a step of them is part of the graph.
        own = dict.fromkeys(SELF_NAMES, self._layout.own_rows)
        per_step = [
            own | self._layout.controls([table.controls(step) for table in tables]).as_dict()
            for step in range(self._steps)
        ]
        self._controls = {name: torch.stack([step[name] for step in per_step]) for name in per_step[0]}
        self._timesteps = torch.cat([table.timestep for table in tables], dim=1)
        self._sample_weight = torch.cat([table.sample_weight for table in tables], dim=1)
        self._output_weight = torch.cat([table.output_weight for table in tables], dim=1)
        self._noise, self._noise_weight = _noise(tables)
        # Prompts that change, stacked; those that never do stay as they are.
        self._prompts: dict[str, Tensor] = {}
        if any(table.step_prompt for table in tables):
            prompts = [self._layout.prompt_at([step] * len(tables)) for step in range(self._steps)]
            self._prompts = {name: torch.stack([at[name] for at in prompts]) for name in prompts[0]}
        self._rows = torch.cat(
            [t.conditional_row + start for t, start in zip(tables, self._layout.first_row, strict=True)]
        )
        self._start = torch.cat([state.latents for state in states])
        size: tuple[int, int] = (self._start.shape[-2], self._start.shape[-1])
        map_size = runner.specs.map_size(*size)
        self._blends: StaticBlends | None = None
        if any(plan.local_blend for plan in plans):
            self._blends = StaticBlends(self._layout, self._steps, latent_size=size, map_size=map_size)
        self._findings = [
            StaticFindings(table, row, track, map_size[0] * map_size[1])
            for table, row, track in zip(
                tables, self._layout.first_row, self._layout.first_track, strict=True
            )
            if table.adaptive is not None
        ]
        self.latents = self._start.clone()
        self._step = torch.zeros(1, dtype=torch.int64, device=runner.device)
        self.map_sum: Tensor | None = None
        self.feature_sum: Tensor | None = None

    @torch.inference_mode()
    def run(self) -> Tensor:
        """All steps; latents [tracks, C, h, w] on the device, in place: the next run overwrites them.

        Waits for nothing. `map_sum` [tracks, P, N] and `feature_sum` [tracks, P, V] are those of this run.
        """
        self._reset()
        for _ in range(self._steps):
            self._advance()
        return self.latents

    def _advance(self) -> None:
        self._once()

    def _reset(self) -> None:
        self.latents.copy_(self._start)
        self._step.zero_()
        for total in (self.map_sum, self.feature_sum):
            if total is not None:
                total.zero_()

    def _once(self) -> None:
        def now(table: Tensor) -> Tensor:
            return table.index_select(0, self._step).squeeze(0)

        layout = self._layout
        controls = {name: now(table) for name, table in self._controls.items()}
        for findings in self._findings:
            findings.apply(controls, self._step)
        inputs = {
            "sample": self.latents.index_select(0, layout.track_of_row).to(self._runner.dtype),
            "timestep": now(self._timesteps),
            **(layout.prompt | {name: now(table) for name, table in self._prompts.items()}),
            **controls,
        }
        outputs = self._runner.infer(inputs, OUTPUT_NAMES)
        map_sum, feature_sum = self._add(outputs)
        for findings in self._findings:
            findings.update(map_sum, feature_sum, self._step)
        blends = self._blends
        self.latents.copy_(
            guided_step(
                outputs["noise_pred"],
                self.latents,
                layout.guidance_rows,
                layout.guidance_weights,
                now(self._sample_weight),
                now(self._output_weight),
                None if self._noise is None else now(self._noise),
                None if self._noise_weight is None else now(self._noise_weight),
                None if blends is None else blends.mask(now(blends.active), map_sum),
                None if blends is None else blends.source,
                check_values=False,
            )
        )
        self._step.add_(1)

    def _add(self, outputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        maps = outputs["cross_attention_maps"].index_select(0, self._rows).float()
        features = outputs["visual_features"].index_select(0, self._rows).float()
        if self.map_sum is None or self.feature_sum is None:
            self.map_sum, self.feature_sum = torch.zeros_like(maps), torch.zeros_like(features)
        return self.map_sum.add_(maps), self.feature_sum.add_(features)


def _noise(tables: Sequence[RowTables]) -> tuple[Tensor | None, Tensor | None]:
    """Noise [T, K, C, h, w] and its weights [T, K] of all tracks, zero for plans without."""
    if all(table.noise is None for table in tables):
        return None, None
    noise, weight = [], []
    for table in tables:
        none = torch.zeros_like(table.sample_weight)
        shape = (*none.shape, *table.plan.latents.shape[1:])
        noise.append(none.new_zeros(shape) if table.noise is None else table.noise)
        weight.append(none if table.noise_weight is None else table.noise_weight)
    return torch.cat(noise, dim=1), torch.cat(weight, dim=1)


class GraphedSteps(StaticSteps):
    """The same, captured once and replayed at every step. Raises `RunnerError` elsewhere than on CUDA."""

    def __init__(self, states: Sequence[EditState], runner: Runner) -> None:
        if runner.device.type != "cuda":
            raise RunnerError(f"CUDA graphs were asked for on {runner.device}; move the model to 'cuda'")
        super().__init__(states, runner)
        with torch.inference_mode():
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    self._once()
                    self._step.zero_()
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._once()

    def _advance(self) -> None:
        self._graph.replay()
