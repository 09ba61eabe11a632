"""TensorRT in its three forms: full, lean and for RTX. All that differs between them is here."""

from __future__ import annotations

import ctypes
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from adapedit_engine.runners import RunnerError

RTX_BINDINGS = "tensorrt_rtx_bindings"
RTX_LIBRARIES = "onnxruntime_ep_nv_tensorrt_rtx"
PRELOAD = ("libcudart.so.*", "libtensorrt_rtx.so.*", "libtensorrt_onnxparser_rtx.so.*")


# A plan tells this only where it can be loaded, which takes a GPU; the builder says it anywhere.
ACTIVATION = re.compile(r"Total Activation Memory: (\d+) bytes")


@dataclass(frozen=True, kw_only=True)
class Flavour:
    """builds: whether plans can be built with it, or only run."""

    modules: tuple[str, ...]
    builds: bool
    install: str


FLAVOURS = {
    "tensorrt": Flavour(modules=("tensorrt",), builds=True, install="pip install tensorrt"),
    "tensorrt-rtx": Flavour(
        modules=("tensorrt_rtx", RTX_BINDINGS), builds=True, install="pip install 'adapedit[tensorrt-rtx]'"
    ),
    "tensorrt-lean": Flavour(
        modules=("tensorrt_lean",), builds=False, install="pip install tensorrt-lean-cu13"
    ),
}


@dataclass(frozen=True, kw_only=True)
class TensorRT:
    """A loaded library: `module` has TensorRT's Python API."""

    flavour: str
    module: Any
    version: str

    @property
    def builds_without_gpu(self) -> bool:
        """Whether plans for a named compute capability can be built where no GPU is."""
        return self.flavour == "tensorrt-rtx"

    @property
    def family(self) -> str:
        """Whose plans it runs: the lean runtime runs those of the full library."""
        return "tensorrt" if self.flavour == "tensorrt-lean" else self.flavour


def why_not(flavour: str) -> str | None:
    """What keeps a flavour from loading, and how to mend it; None where nothing does."""
    kind = FLAVOURS[flavour]
    if not any(find_spec(name) is not None for name in kind.modules):
        return f"needs the package {kind.modules[0]}; {kind.install}"
    try:
        load(flavour)
    except RunnerError as error:
        return str(error)
    return None


@lru_cache
def load(flavour: str) -> TensorRT:
    """Import a flavour. Raises `RunnerError` where it is not installed or its libraries do not load."""
    kind = FLAVOURS.get(flavour)
    if kind is None:
        raise RunnerError(f"there is no TensorRT {flavour!r}; use one of: {', '.join(FLAVOURS)}")
    for name in kind.modules:
        if find_spec(name) is None:
            continue
        try:
            if name == RTX_BINDINGS:
                _preload_rtx()
            module = importlib.import_module(name)
        except (ImportError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RunnerError(f"{name} is installed but does not load ({reason}); {kind.install}") from error
        return TensorRT(flavour=flavour, module=module, version=module.__version__)
    raise RunnerError(f"{flavour} is not installed; {kind.install}")


def load_builder() -> TensorRT:
    """The first flavour that is installed and builds plans: the full library before RTX."""
    for flavour, kind in FLAVOURS.items():
        if kind.builds and any(find_spec(name) is not None for name in kind.modules):
            return load(flavour)
    hints = " or ".join(kind.install for kind in FLAVOURS.values() if kind.builds)
    raise RunnerError(f"no TensorRT that builds plans is installed; {hints}")


def _preload_rtx() -> None:
    # The bindings name libraries that they do not carry; ONNX Runtime's plug-in does, and does not put them
    # where the loader looks. Order matters: each needs the one before it.
    found = find_spec(RTX_LIBRARIES)
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"the libraries are in the package {RTX_LIBRARIES.replace('_', '-')}-cu13")
    folder = Path(next(iter(found.submodule_search_locations)))
    for pattern in PRELOAD:
        files = sorted(folder.glob(pattern))
        if not files:
            raise ImportError(f"{folder} has no {pattern}")
        ctypes.CDLL(str(files[-1]), mode=ctypes.RTLD_GLOBAL)


class Messages:
    """What a library says from now on, so that an error can name its cause."""

    def __init__(self, tensorrt: TensorRT) -> None:
        self._said: list[str] = []
        self._memory = 0
        self.logger, listener = _logger(tensorrt)
        listener[:] = [self._hear]

    def first(self, otherwise: str = "no reason was given") -> str:
        """The first error, in a line of moderate length."""
        return self._said[0][:400] if self._said else otherwise

    @property
    def activation_bytes(self) -> int:
        """Device memory for what lies between the layers, of the largest profile, as the builder planned it."""
        return self._memory

    def _hear(self, serious: bool, message: str) -> None:
        if serious:
            self._said.append(" ".join(message.split()))
        elif found := ACTIVATION.search(message):
            self._memory = max(self._memory, int(found[1]))


@lru_cache
def _logger(tensorrt: TensorRT) -> tuple[Any, list[Callable[[bool, str], None]]]:
    # One for the life of the process: TensorRT keeps the first logger that it is given and ignores all others.
    trt: Any = tensorrt.module
    errors = (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)
    listener: list[Callable[[bool, str], None]] = []

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            for hear in listener:
                hear(severity in errors, message)

    return Log(), listener
