"""Approximations that reuse what an earlier step of the same edit computed: which step does, and what it takes.

Feature caching (DeepCache, Ma et al. 2024): the deep layers of the UNet change little from step to step, so only every
`feature_interval`-th step runs them, and the others run the shallowest ones alone on what was kept. Gated
cross-attention (T-GATE, Zhang et al. 2024): late steps hardly depend on the words, so from a step on the outputs of
cross-attention are those of the last step that ran it. Both are off unless a plan asks for them; both belong to an
edit and not to the loop, so other edits run beside it as ever.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adapedit_engine.runners import Runner, RunnerError
from adapedit_engine.specs import ModelSpecs

STEP_ROUNDING = 1e-4  # of a step, which a product of rounded numbers may be off by


@dataclass(frozen=True, kw_only=True)
class Call:
    """What kind of UNet call a step takes: edits whose steps take the same kind can share one.

    shallow: on deep features that were kept. gated: on outputs of cross-attention that were kept.
    keeps_deep, keeps_cross: leaves them for later steps.
    """

    shallow: bool = False
    gated: bool = False
    keeps_deep: bool = False
    keeps_cross: bool = False

    @property
    def maps(self) -> bool:
        """Whether the call computes the maps and features that a plan may want of it."""
        return not (self.shallow or self.gated)


EXACT = Call()


def call_at(step_index: int, steps: int, feature_interval: int, cross_attention_until: float) -> Call:
    """The call of a step of an edit with `steps` of them. A function of the plan's numbers alone."""
    if feature_interval == 1 and cross_attention_until >= 1:
        return EXACT
    gate = max(1, math.ceil(cross_attention_until * steps - STEP_ROUNDING))
    shallow = step_index % feature_interval != 0
    last_ungated = (gate - 1) // feature_interval * feature_interval
    return Call(
        shallow=shallow,
        gated=step_index >= gate,
        keeps_deep=feature_interval > 1 and not shallow and step_index + 1 < steps,
        keeps_cross=gate < steps and step_index == last_ungated,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Kept:
    """What an edit has kept, for its B rows: deep [B, C, h, w]; cross: per cross-attention layer, [B, P, C]."""

    deep: Tensor | None = None
    cross: tuple[Tensor, ...] = ()

    def conditional(self, guidance: int) -> Kept:
        """For the conditional rows alone, once guidance stops. Outputs of cross-attention become means over a track's
        guidance rows, as T-GATE has it: what guidance would have weighed is not there any more."""

        def last(tensor: Tensor) -> Tensor:
            return tensor.unflatten(0, (-1, guidance))[:, -1].contiguous()

        def mean(tensor: Tensor) -> Tensor:
            return tensor.unflatten(0, (-1, guidance)).mean(1)

        return Kept(
            deep=None if self.deep is None else last(self.deep),
            cross=tuple(mean(tensor) for tensor in self.cross),
        )


NOTHING_KEPT = Kept()


@dataclass(kw_only=True, eq=False)
class Reuse:
    """One call's side of it: what its layers find (`deep`, `cross`), what they shall keep, and what they kept."""

    call: Call
    deep: Tensor | None = None
    cross: tuple[Tensor, ...] = ()
    kept_deep: Tensor | None = None
    kept_cross: list[Tensor] = field(default_factory=list)


def reusing_infer(
    call: Call,
    kept: Sequence[Kept],
    inputs: Mapping[str, Tensor],
    names: Sequence[str],
    runner: Runner,
    rows: Sequence[int],
) -> tuple[dict[str, Tensor], list[Kept]]:
    """`runner.infer` for edits that reuse, all by the same kind of call; and what each has kept after it.

    kept: of every edit before the call; rows: of every edit.
    """
    reuse = Reuse(call=call)
    if call.shallow:
        reuse.deep = torch.cat([one.deep for one in kept if one.deep is not None])
    if call.gated:
        reuse.cross = tuple(torch.cat(parts) for parts in zip(*(one.cross for one in kept), strict=True))
    reusing: Any = runner
    outputs = reusing.infer_reusing(inputs, names if call.maps else names[:1], reuse)
    deep = [one.deep for one in kept]
    cross = [one.cross for one in kept]
    if reuse.kept_deep is not None:
        deep = list(reuse.kept_deep.split(list(rows)))
    if call.keeps_cross:
        cross = list(zip(*(tensor.split(list(rows)) for tensor in reuse.kept_cross), strict=True))
    return outputs, [Kept(deep=d, cross=c) for d, c in zip(deep, cross, strict=True)]


def check_reuse(feature_interval: int, cross_attention_until: float, runner: Any) -> None:
    """Raise `RunnerError` where the edit reuses and the runner can't: nothing is approximated some other way."""
    asked = []
    if feature_interval != 1:
        asked.append(f"feature_interval={feature_interval}")
    if cross_attention_until < 1:
        asked.append(f"cross_attention_until={cross_attention_until:g}")
    if asked and not getattr(runner, "supports_reuse", False):
        name = getattr(runner, "name", None) or type(runner).__name__
        raise RunnerError(
            f"{' and '.join(asked)} was asked for, and runner {name} can't keep features between steps; "
            "leave it out, or run a checkpoint with runner 'pytorch'"
        )


def kept_values(specs: ModelSpecs, rows: int, height: int, width: int, *, deep: bool, cross: bool) -> int:
    """How many numbers an edit of so many rows keeps."""
    count = 0
    if deep:
        count += specs.cross_layers[-1].channels * height * width
    if cross:
        for layer in specs.cross_layers:
            layer_height, layer_width = specs.size_at(layer.level, height, width)
            count += layer.channels * layer_height * layer_width
    return rows * count
