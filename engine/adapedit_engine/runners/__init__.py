"""Runners: what executes a controlled UNet. One interface, one file each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from adapedit_engine.specs import ModelSpecs
from adapedit_kernels.errors import AdapEditError


class RunnerError(AdapEditError):
    """A runner that can't run, was not opened, or was given inputs that it does not take."""


class Runner(Protocol):
    """A UNet behind names: tensors in, tensors out, on one device. Open it (`with runner:`) around its use.

    Inputs are those of `adapedit_engine.unet.INPUT_NAMES`, with the prompt in the form that `condition` gives
    it; outputs those of `OUTPUT_NAMES`. `specs` is known before the runner is opened.
    """

    @property
    def specs(self) -> ModelSpecs: ...

    @property
    def device(self) -> torch.device:
        """Where inputs are wanted and outputs lie."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of `sample` and of the prompt's tensors."""
        ...

    @property
    def needs_all_controls(self) -> bool:
        """Whether every control tensor is wanted in every call (a fixed graph) or `None`s may be left out."""
        ...

    def __enter__(self) -> Runner: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def condition(self, encoder_hidden_states: Tensor) -> dict[str, Tensor]:
        """The inputs that depend on the prompt alone, [rows, ...] each: computed once per edit, fed at every
        step.

        `{"encoder_hidden_states": ...}`, or the keys and values of every layer where the runner takes them.
        """
        ...

    def infer(self, inputs: Mapping[str, Tensor], outputs: Sequence[str] | None = None) -> dict[str, Tensor]:
        """One prediction. `outputs`: the names wanted, by default all; the others may not be computed."""
        ...


__all__ = ["Runner", "RunnerError"]
