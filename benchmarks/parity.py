"""Whether ways do the same, before they are timed: held to it in float32, told in half precision.

Half precision rounds a thousandth of a value away at every step, and every way rounds at other places: a limit that
lets this pass lets mistakes pass, too. So the gate is in float32, whatever is timed, and what the dtype asked for makes
of it stands beside that.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import common

EXACT = "float32"
Pipelines = Mapping[str, Any]
"""By the dtype of the weights, float32 first."""


def pipelines(options: argparse.Namespace, pipe: Any) -> Pipelines:
    """`pipe`, of the dtype asked for, and the same model in float32."""
    if options.dtype == EXACT:
        return {EXACT: pipe}
    return {EXACT: common.pipeline(options, EXACT), options.dtype: pipe}


def grey_levels(pipes: Pipelines, apart: Callable[[Any], int]) -> dict[str, Any]:
    """How far a pipeline's pictures are apart, by dtype. Raises `SystemExit` for more than a grey level in float32."""
    exact, *others = pipes
    found = {"grey_levels": common.gate(apart(pipes[exact]))}
    return found | {f"grey_levels_in_{dtype}": apart(pipes[dtype]) for dtype in others}
