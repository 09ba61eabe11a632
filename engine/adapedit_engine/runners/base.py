"""What a runner is, what it can do, and how one is opened by its name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

from adapedit_engine.models.controls import EDIT_NAMES
from adapedit_engine.models.layers import ModelSpecs
from adapedit_engine.models.unet import OUTPUT_NAMES
from adapedit_kernels.errors import AdapEditError

if TYPE_CHECKING:
    from adapedit_engine.bundle import Bundle
    from adapedit_engine.runners.graphs import BundleRunner

CHECKPOINT_RUNNERS = ("pytorch", "pytorch-compiled")
"""These run a checkpoint's own modules, not a bundle."""

BUNDLE_RUNNERS = {
    "onnxruntime": "onnxruntime",
    "onnxruntime-cuda": "onnxruntime",
    "onnxruntime-tensorrt": "onnxruntime",
    "onnxruntime-tensorrt-rtx": "onnxruntime",
    "openvino": "openvino",
    "openvino-bfloat16": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt",
    "tensorrt-lean": "tensorrt",
}
"""Runners of bundles, each with the file here that it is in."""

CPU_RUNNERS = ("onnxruntime", "openvino", "openvino-bfloat16")
"""Those of bundles that run on the CPU; the others want an NVIDIA GPU."""

RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""GPUs that TensorRT for RTX has kernels for."""


class RunnerError(AdapEditError):
    """A runner that can't run, was not opened, or was given inputs that it does not take."""


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a runner can do, and what it wants of a call.

    rows:         numbers of rows, ascending, to the next of which a call is filled up; None: any.
    all_controls: every control is wanted in every call, for the graph is fixed; self-attention gathers in all layers.
    exact:        calls are computed in the precision of the weights, and not in less.
    gradients:    the model's modules are at hand, and can be differentiated.
    capture:      "step": calls may be captured in a CUDA graph of a whole step; "own": the runner makes graphs of its
                  calls itself, and must not be captured from outside; "none": there are none.
    """

    rows: tuple[int, ...] | None = None
    all_controls: bool = False
    exact: bool = True
    gradients: bool = False
    capture: Literal["step", "own", "none"] = "none"


class Runner(Protocol):
    """A model behind names: tensors in, tensors out, on one device. Open it (`with runner:`) around its use.

    Inputs are those of `adapedit_engine.models.unet.INPUT_NAMES`, with the prompt in the form that `condition` gives
    it; outputs those of `OUTPUT_NAMES`. Everything but `infer` and `condition` is known before the runner is opened.
    """

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...

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

    def __enter__(self) -> Runner: ...

    def __exit__(self, *error: Any) -> None: ...

    def condition(self, encoder_hidden_states: Tensor) -> dict[str, Tensor]:
        """The inputs that depend on the prompt alone, [rows, ...] each: keys and values of every layer."""
        ...

    def infer(
        self,
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str] | None = None,
        *,
        self_layers: Mapping[str, tuple[int, ...]] | None = None,
    ) -> dict[str, Tensor]:
        """One prediction.

        outputs:     the names wanted, by default all; the others may not be computed.
        self_layers: by name of `SELF_NAMES`, the self-attention layers in which some row takes from another; elsewhere
                     nothing is gathered. None: all gather, as they do in any case where all controls are wanted.
        """
        ...


def fill_lists(inputs: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
    """The inputs with as many edits and map rows as rows, for graphs of fixed shapes: the first of each is repeated."""
    filled = dict(inputs)
    for name in (*EDIT_NAMES, "map_row"):
        if name in filled and (missing := rows - len(filled[name])) > 0:
            first = filled[name][:1].expand(missing, *filled[name].shape[1:])
            filled[name] = torch.cat([filled[name], first])
    return filled


def cut_lists(outputs: Mapping[str, Tensor], maps: int) -> dict[str, Tensor]:
    """The outputs of a call whose lists were filled, without what was added: so many rows' maps were asked for."""
    return {name: value if name == OUTPUT_NAMES[0] else value[:maps] for name, value in outputs.items()}


def why_not(name: str, index: int = 0) -> str | None:
    """What keeps the bundle runner `name` from running here, and how to mend it; None where nothing does.

    index: of the GPU, which has to be there if any is.
    """
    return _file(name).why_not(name, index)


def why_no_gpu(then: str) -> str | None:
    """What keeps GPU runners from running here; None where nothing does. then: what is to be installed as well."""
    if torch.cuda.is_available():
        return None
    return f"needs an NVIDIA GPU and a CUDA build of torch, which are not here; then {then}"


def capability_of(index: int) -> str:
    """The compute capability of a GPU, such as "8.9"."""
    return ".".join(map(str, torch.cuda.get_device_capability(index)))


def why_no_rtx(index: int) -> str | None:
    """Why TensorRT for RTX has no kernels for a GPU, and what there is instead; None where it has some."""
    capability = capability_of(index)
    if capability in RTX_CAPABILITIES:
        return None
    kind = ", as an H100 or H200 has it" if capability == "9.0" else ""
    return (
        f"knows the compute capabilities {', '.join(RTX_CAPABILITIES)} and not {capability}{kind}; "
        "take runner tensorrt, onnxruntime-tensorrt or onnxruntime-cuda there, or pytorch-compiled on the checkpoint"
    )


def device_of(name: str, device: torch.device | str | None = None) -> torch.device:
    """The device that a runner of bundles runs on; None: the first of its kind.

    Raises `RunnerError` in one line for another kind of device, one that is not there, or a runner that can't run here.
    """
    if name not in BUNDLE_RUNNERS:
        raise RunnerError(f"there is no runner {name!r}; use one of: {', '.join(BUNDLE_RUNNERS)}")
    kind = "cpu" if name in CPU_RUNNERS else "cuda"
    try:
        asked = torch.device(kind if device is None else device)
    except (RuntimeError, TypeError) as error:
        raise RunnerError(f"device is {device!r}, wanted one as PyTorch names it, such as cuda:1") from error
    if asked.type != kind:
        raise RunnerError(
            f"device is {asked}, and runner {name!r} runs on {kind}; choose another runner by --runner"
        )
    count, index = torch.cuda.device_count(), asked.index or 0
    if kind == "cuda" and count and index >= count:
        there = ", ".join(f"cuda:{number}" for number in range(count))
        raise RunnerError(f"device is {asked}, and there is no GPU of this number here; there: {there}")
    if (reason := why_not(name, index)) is not None:
        raise RunnerError(f"runner {name!r} was asked for and can't run here: it {reason}")
    return torch.device(kind, index) if kind == "cuda" else torch.device(kind)


def open_bundle_runner(
    bundle: Bundle, name: str = "onnxruntime", device: torch.device | str | None = None
) -> BundleRunner:
    """The runner `name` over a bundle. Raises `RunnerError` where it is unknown or can't run here or there."""
    if name in CHECKPOINT_RUNNERS:
        what = f"runner {name!r} runs checkpoints, and {bundle.folder} is a bundle"
        raise RunnerError(f"{what}; use one of: {', '.join(BUNDLE_RUNNERS)}")
    on = device_of(name, device)
    return _file(name).open_bundle(bundle, name, on)


def _file(name: str) -> Any:
    return importlib.import_module(f"adapedit_engine.runners.{BUNDLE_RUNNERS[name]}")
