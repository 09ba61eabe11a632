"""The PyTorch runner: diffusers' UNet in eager mode, with keys and values projected once per prompt."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType

import torch
from torch import Tensor, nn

from adapedit_engine.controls import CONTROL_NAMES, Controls
from adapedit_engine.runners import RunnerError
from adapedit_engine.specs import ModelSpecs
from adapedit_engine.unet import OUTPUT_NAMES, ControlledUNet

CALL_NAMES = ("sample", "timestep")


class PyTorchRunner:
    """Runs a diffusers UNet in place: same device, same dtype, own processors back after the `with` block."""

    needs_all_controls = False

    def __init__(
        self,
        unet: nn.Module,
        *,
        map_divisor: int | None = None,
        project_once: bool = True,
    ) -> None:
        """See `ControlledUNet`. `project_once=False` projects the prompt at every step, as diffusers does.

        Raises `UnsupportedModelError` for a UNet that can't be controlled.
        """
        self.controlled = ControlledUNet(unet, map_divisor=map_divisor)
        self._project_once = project_once
        self._open: list[ExitStack] = []
        self._opening = threading.Lock()

    @property
    def specs(self) -> ModelSpecs:
        return self.controlled.specs

    @property
    def device(self) -> torch.device:
        return next(self.controlled.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.controlled.parameters()).dtype

    def __enter__(self) -> PyTorchRunner:
        """Set the control processors. May be nested, and by several threads."""
        with self._opening:
            stack = ExitStack()
            stack.enter_context(self.controlled.attached())
            self._open.append(stack)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._opening:
            self._open.pop().close()

    @torch.inference_mode()
    def condition(self, encoder_hidden_states: Tensor) -> dict[str, Tensor]:
        """`{"key_0": [rows, N, channels], "value_0": ..., "key_1": ...}`, or the hidden states."""
        hidden_states = encoder_hidden_states.to(self.device, self.dtype)
        if not self._project_once:
            return {"encoder_hidden_states": hidden_states}
        named = {}
        for i, (key, value) in enumerate(self.controlled.project(hidden_states)):
            named[f"key_{i}"], named[f"value_{i}"] = key, value
        return named

    @torch.inference_mode()
    def infer(self, inputs: Mapping[str, Tensor], outputs: Sequence[str] | None = None) -> dict[str, Tensor]:
        """See `Runner.infer`. Raises `RunnerError` for unknown names, `ControlError` for wrong shapes."""
        wanted = OUTPUT_NAMES if outputs is None else tuple(outputs)
        self._check(inputs, wanted)
        projected = None
        if "key_0" in inputs:
            layers = range(len(self.specs.cross_layers))
            projected = [(inputs[f"key_{i}"], inputs[f"value_{i}"]) for i in layers]
        output = self.controlled(
            inputs["sample"],
            inputs["timestep"],
            inputs.get("encoder_hidden_states"),
            Controls.from_dict(inputs),
            projected=projected,
            capture=wanted != ("noise_pred",),
        )
        return {name: getattr(output, name) for name in wanted}

    def check_open(self) -> None:
        """Raise `RunnerError` outside of the `with` block."""
        if not self._open:
            raise RunnerError("the PyTorch runner is closed: use it inside `with runner:`")

    def _check(self, inputs: Mapping[str, Tensor], wanted: Sequence[str]) -> None:
        self.check_open()
        unknown = [name for name in wanted if name not in OUTPUT_NAMES]
        if unknown:
            raise RunnerError(f"there is no output {unknown[0]!r}; wanted of {', '.join(OUTPUT_NAMES)}")
        missing = [name for name in CALL_NAMES if name not in inputs]
        if missing:
            raise RunnerError(f"input {missing[0]!r} is missing")
        if "key_0" in inputs:
            prompt = [f"{kind}_{i}" for i in range(len(self.specs.cross_layers)) for kind in ("key", "value")]
        else:
            prompt = ["encoder_hidden_states"]
        missing = [name for name in prompt if name not in inputs]
        if missing:
            raise RunnerError(f"input {missing[0]!r} is missing: feed what condition() returns")
        unknown = [name for name in inputs if name not in (*CALL_NAMES, *prompt, *CONTROL_NAMES)]
        if unknown:
            raise RunnerError(
                f"there is no input {unknown[0]!r}; known: {', '.join((*CALL_NAMES, *CONTROL_NAMES))}"
            )
