"""A runner with a cache of prompts around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

import torch
from torch import Tensor

from adapedit_engine.cache import ProjectionCache
from adapedit_engine.models.layers import ModelSpecs
from adapedit_engine.runners import Capabilities, Runner


class CachedRunner:
    """A runner that projects each prompt once, however many edits and rows use it."""

    def __init__(self, runner: Runner, max_bytes: int) -> None:
        self.runner, self.prompts = runner, ProjectionCache(runner, max_bytes)

    @property
    def name(self) -> str:
        return self.runner.name

    @property
    def capabilities(self) -> Capabilities:
        return self.runner.capabilities

    @property
    def specs(self) -> ModelSpecs:
        return self.runner.specs

    @property
    def device(self) -> torch.device:
        return self.runner.device

    @property
    def dtype(self) -> torch.dtype:
        return self.runner.dtype

    def __enter__(self) -> CachedRunner:
        self.runner.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.runner.__exit__(kind, error, traceback)

    def condition(self, encoder_hidden_states: Tensor) -> dict[str, Tensor]:
        """See `Runner.condition`."""
        return self.prompts.condition(encoder_hidden_states)

    def infer(
        self,
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str] | None = None,
        *,
        self_layers: Mapping[str, tuple[int, ...]] | None = None,
    ) -> dict[str, Tensor]:
        """See `Runner.infer`."""
        return self.runner.infer(inputs, outputs, self_layers=self_layers)
