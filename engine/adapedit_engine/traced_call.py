"""One UNet call for edits of which some replay their source: its rows are left out of the call, and put in behind."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapedit_engine.controls import SELF_NAMES
from adapedit_engine.exchange import Exchange, Tap
from adapedit_engine.layout import Layout
from adapedit_engine.recording import SourceStep, Trace
from adapedit_engine.runners import Runner
from adapedit_engine.unet import OUTPUT_NAMES

NOISE, MAPS, FEATURES = OUTPUT_NAMES
# Of an edit's rows, those that are run; every other input is also about rows that are looked at.
OF_RUN_ROWS = ("sample", "timestep")


def traced_infer(
    traces: Sequence[tuple[Trace | None, int]],
    layout: Layout,
    inputs: Mapping[str, Tensor],
    names: Sequence[str],
    runner: Runner,
) -> dict[str, Tensor]:
    """`runner.infer(inputs, names)`: all rows in inputs and outputs, whichever of them are run.

    traces: of every edit in the layout, with the number of its step.
    """
    if all(trace is None for trace, _ in traces):
        return runner.infer(inputs, names)
    rows = CallRows.of(layout, [trace for trace, _ in traces])
    if any(trace is not None and not trace.replays and trace.recording.reach.maps for trace, _ in traces):
        names = OUTPUT_NAMES
    exchange = rows.exchange(traces)
    run: Any = runner
    outputs = rows.outputs(run.infer_with(rows.inputs(inputs, layout), names, exchange), traces)
    taps = iter(exchange.taps)
    for (trace, step), (first, end) in zip(traces, rows.sources, strict=True):
        if trace is not None and not trace.replays:
            trace.recording.steps[step] = _step(outputs, next(taps), first, end, trace)
    return outputs


@dataclass(frozen=True, kw_only=True, eq=False)
class CallRows:
    """Which rows of a layout are run. Numbers are of the layout's rows unless said otherwise.

    sources:    by edit, its source's rows [first, end).
    run:        [B'], those that are run, in order.
    looked_at:  [B' + E], run, then those that are replayed in cross-attention.
    place:      [B], in `looked_at`; -1: not there. places: the same on the host.
    self_place: [L, B], per self-attention layer, in the rows that are there; 0 where they are not.
    prompt:     the layout's prompt, at `looked_at`.
    """

    sources: tuple[tuple[int, int], ...]
    run: Tensor
    looked_at: Tensor
    place: Tensor
    places: tuple[int, ...]
    self_place: Tensor
    prompt: Mapping[str, Tensor]

    @classmethod
    def of(cls, layout: Layout, traces: Sequence[Trace | None]) -> CallRows:
        """Made once for a layout: an edit's trace is its own from its first step to its last."""
        known = _KNOWN.get(layout)
        if known is None:
            known = _KNOWN[layout] = cls._of(layout, traces)
        return known

    @classmethod
    def _of(cls, layout: Layout, traces: Sequence[Trace | None]) -> CallRows:
        device, (layers, total) = layout.own_rows.device, layout.own_rows.shape
        sources = tuple(
            (first, first + table.plan.guidance)
            for first, table in zip(layout.first_row, layout.tables, strict=True)
        )
        replays = [(t.needs, rows) for t, rows in zip(traces, sources, strict=True) if t and t.replays]
        left_out = {row for _, (first, end) in replays for row in range(first, end)}
        run = [row for row in range(total) if row not in left_out]
        place = [-1] * total
        for number, row in enumerate(run):
            place[row] = number
        self_place = [[max(0, number) for number in place] for _ in range(layers)]
        looked_at, there = list(run), [len(run)] * layers
        for needs, (first, end) in replays:
            if needs.cross:
                place[end - 1] = len(looked_at)
                looked_at.append(end - 1)
            for layer, wanted in enumerate(needs.self_rows):
                for row in range(max(first, end - wanted), end):
                    self_place[layer][row] = there[layer]
                    there[layer] += 1
        at = torch.tensor(looked_at, device=device)
        return cls(
            sources=sources,
            run=at[: len(run)],
            looked_at=at,
            place=torch.tensor(place, device=device),
            places=tuple(place),
            self_place=torch.tensor(self_place, device=device),
            prompt={name: value.index_select(0, at) for name, value in layout.prompt.items()},
        )

    def inputs(self, inputs: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
        """Inputs of all rows to those of `infer_with`."""
        if len(self.run) == len(self.places):
            return dict(inputs)
        fewer: dict[str, Tensor] = {}
        for name, value in inputs.items():
            if name in OF_RUN_ROWS:
                fewer[name] = value.index_select(0, self.run)
            elif name in SELF_NAMES:
                fewer[name] = self.self_place.gather(1, value.index_select(1, self.run))
            elif name == "source_row":
                wanted = self.place.index_select(0, value.index_select(0, self.looked_at))
                own = torch.arange(len(self.looked_at), device=wanted.device)
                # A source that is not there is one whose maps weigh nothing in the row's: see `Reach.cross`.
                fewer[name] = torch.where(wanted < 0, own, wanted)
            elif value is layout.prompt.get(name):
                fewer[name] = self.prompt[name]
            else:
                fewer[name] = value.index_select(0, self.looked_at)
        return fewer

    def exchange(self, traces: Sequence[tuple[Trace | None, int]]) -> Exchange:
        """What the layers take from recordings at this step, and what they leave for them."""
        queries: dict[int, list[Tensor]] = {}
        hidden: dict[int, tuple[Tensor, ...]] = {}
        taps = []
        for (trace, number), (first, end) in zip(traces, self.sources, strict=True):
            if trace is None:
                continue
            if not trace.replays:
                taps.append(self._tap(trace, first, end))
                continue
            step, needs = trace.recording.steps[number], trace.needs
            if needs.cross:
                for layer, query in step.queries.items():
                    queries.setdefault(layer, []).append(query)
            for layer, wanted in enumerate(needs.self_rows):
                if wanted:
                    hidden[layer] = (*hidden.get(layer, ()), step.hidden[layer][-wanted:])
        return Exchange(
            queries=tuple(tuple(queries[layer]) for layer in sorted(queries)),
            hidden=hidden,
            taps=tuple(taps),
        )

    def _tap(self, trace: Trace, first: int, end: int) -> Tap:
        reach, (first, end) = trace.recording.reach, (self.places[first], self.places[end - 1] + 1)
        hidden = {layer: (max(first, end - rows), end) for layer, rows in enumerate(reach.self_rows) if rows}
        return Tap(row=end - 1, queries=reach.cross, hidden=hidden)

    def outputs(
        self, outputs: Mapping[str, Tensor], traces: Sequence[tuple[Trace | None, int]]
    ) -> dict[str, Tensor]:
        """Outputs of the rows that were run to those of all rows: what was recorded, and 0 where nothing reads it."""
        if len(self.run) == len(self.places):
            return dict(outputs)
        whole = {
            name: value.new_zeros(len(self.places), *value.shape[1:]).index_copy_(0, self.run, value)
            for name, value in outputs.items()
        }
        for (trace, number), (first, end) in zip(traces, self.sources, strict=True):
            if trace is None or not trace.replays:
                continue
            step = trace.recording.steps[number]
            whole[NOISE][first:end] = step.noise_pred
            for name, value in ((MAPS, step.maps), (FEATURES, step.features)):
                if value is not None and name in whole:
                    whole[name][end - 1 : end] = value
        return whole


# A layout belongs to its edits' states, and goes with them.
_KNOWN: weakref.WeakKeyDictionary[Layout, CallRows] = weakref.WeakKeyDictionary()


def _step(outputs: Mapping[str, Tensor], tap: Tap, first: int, end: int, trace: Trace) -> SourceStep:
    maps = trace.recording.reach.maps
    return SourceStep(
        noise_pred=outputs[NOISE][first:end].clone(),
        maps=outputs[MAPS][end - 1 : end].clone() if maps else None,
        features=outputs[FEATURES][end - 1 : end].clone() if maps else None,
        queries=tap.kept_queries,
        hidden=tap.kept_hidden,
    )
