"""Every runner by its name: what it needs, whether it can run here, and how it is opened on a bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from adapedit_engine.bundle import Bundle
from adapedit_engine.runners import RunnerError
from adapedit_engine.runners import onnxruntime as onnxruntime_runner
from adapedit_engine.runners import tensorrt as tensorrt_runner
from adapedit_engine.runners.bundle import BundleRunner, Opener

CHECKPOINT_RUNNERS = ("pytorch", "pytorch-compiled")
"""These run a checkpoint's own modules, not a bundle."""


@dataclass(frozen=True, kw_only=True)
class RunnerKind:
    """device: that it runs on. why_not: what keeps it from running here, None where nothing does."""

    device: str
    why_not: Callable[[], str | None]
    open_graphs: Callable[[Bundle], Opener]


def _kinds() -> dict[str, RunnerKind]:
    kinds = {
        name: RunnerKind(
            device=provider.device,
            why_not=partial(onnxruntime_runner.why_not, name),
            open_graphs=partial(onnxruntime_runner.opener, runner=name),
        )
        for name, provider in onnxruntime_runner.PROVIDERS.items()
    }
    for name in tensorrt_runner.RUNNERS:
        kinds[name] = RunnerKind(
            device="cuda",
            why_not=partial(tensorrt_runner.why_not, name),
            open_graphs=partial(tensorrt_runner.opener, runner=name),
        )
    return kinds


BUNDLE_RUNNERS = _kinds()


def open_bundle_runner(bundle: Bundle, name: str = "onnxruntime") -> BundleRunner:
    """The runner `name` over a bundle. Raises `RunnerError` where it is unknown or can't run here."""
    if name in CHECKPOINT_RUNNERS:
        raise RunnerError(
            f"runner {name!r} runs checkpoints, and {bundle.folder} is a bundle; "
            f"use one of: {', '.join(BUNDLE_RUNNERS)}"
        )
    if name not in BUNDLE_RUNNERS:
        raise RunnerError(f"there is no runner {name!r}; use one of: {', '.join(BUNDLE_RUNNERS)}")
    kind = BUNDLE_RUNNERS[name]
    reason = kind.why_not()
    if reason is not None:
        raise RunnerError(f"runner {name!r} was asked for and can't run here: it {reason}")
    return BundleRunner(bundle, name, kind.open_graphs(bundle), kind.device)
