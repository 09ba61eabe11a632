"""What an export may be asked for, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch

from adapedit_kernels.errors import AdapEditError

OPSET = 23
"""The first with `Attention`, which ONNX Runtime and TensorRT run fused."""

OPSETS = (21, 22, 23)


class ExportError(AdapEditError):
    """A model or an option that can't be exported."""


class Precision(Enum):
    """How numbers are stored and multiplied.

    float32: everything.
    float16: everything but what the PyTorch modules themselves widen (maps, prepared values, statistics of norms).
    mixed:   weights and products of convolutions and matrices in float16, all between them in float32; the
             VAE, which overflows in float16 for some checkpoints, stays in float32.
    int8, fp8: convolutions and matrices of the UNet in eight bits, the rest in float32.
    """

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    MIXED = "mixed"
    INT8 = "int8"
    FP8 = "fp8"

    @property
    def quantised(self) -> bool:
        return self in (Precision.INT8, Precision.FP8)

    @property
    def base(self) -> Precision:
        """In which the graphs are written before any is quantised."""
        return Precision.FLOAT32 if self.quantised else self

    @property
    def traced(self) -> torch.dtype:
        """What the modules are traced in."""
        return torch.float16 if self is Precision.FLOAT16 else torch.float32

    @property
    def image_limit(self) -> float:
        """Grey levels that an edit may differ from PyTorch in float32 before the check speaks of it."""
        return 1.0 if self is Precision.FLOAT32 else 8.0

    @property
    def ratio_limit(self) -> float:
        """Norm of the error over norm of the value, per output of one call on random inputs."""
        return 1e-4 if self is Precision.FLOAT32 else 0.2 if self.quantised else 2e-2


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Choices of an export.

    rows:          rows of a UNet call, where they shall be fixed; None: any number.
    height, width: of the pictures in pixels; None: what the model was trained for.
    opset:         of the graphs; below 23 self-attention is spelled out and not fused.
    check_steps:   steps of the edit that the graphs are checked along; 0: random inputs only.
    check_rows:    rows of the UNet in the check on random inputs.
    prompts:       that int8 and fp8 are calibrated on; for these alone.
    check:         run what was written, and hold it to PyTorch; False leaves that to `adapedit check`, in a process
                   that does not hold the checkpoint too.
    """

    precision: Precision = Precision.FLOAT32
    rows: int | None = None
    height: int | None = None
    width: int | None = None
    opset: int = OPSET
    check_steps: int = 10
    check_rows: int = 4
    prompts: tuple[str, ...] = ()
    check: bool = True

    def __post_init__(self) -> None:
        if self.opset not in OPSETS:
            raise ExportError(f"opset is {self.opset}, wanted one of {', '.join(map(str, OPSETS))}")
        if self.rows is not None and not 4 <= self.rows < 64:
            raise ExportError(f"rows is {self.rows}, wanted 4 to 63: an edit takes four")
        if self.check_steps < 0 or self.check_rows < 1:
            raise ExportError("check_steps must be at least 0, check_rows at least 1")
        if self.precision.quantised != bool(self.prompts):
            raise ExportError(
                f"there are {len(self.prompts)} prompts to calibrate on for {self.precision.value}; int8 and fp8 want "
                "some (--quantize int8 --calibrate FILE), and nothing else does"
            )
