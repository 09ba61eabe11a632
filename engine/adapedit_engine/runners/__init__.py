"""Runners: what executes a model. One protocol, one file each."""

from adapedit_engine.runners.base import (
    BUNDLE_RUNNERS,
    CHECKPOINT_RUNNERS,
    Capabilities,
    Runner,
    RunnerError,
    device_of,
    open_bundle_runner,
    why_not,
)

__all__ = [
    "BUNDLE_RUNNERS",
    "CHECKPOINT_RUNNERS",
    "Capabilities",
    "Runner",
    "RunnerError",
    "device_of",
    "open_bundle_runner",
    "why_not",
]
