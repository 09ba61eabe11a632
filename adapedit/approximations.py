"""The opt-in approximations of an edit by name: exact unless asked for. Nothing here needs torch.

Each belongs to one edit: a batch may mix them with exact edits. What each loses and saves is measured by
`python -m benchmarks.approximations`. Another has a name elsewhere: the model's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

EXACT: dict[str, Any] = {
    "guidance_until": 1.0,
    "solver": "model",
}
"""Fields of `EditRequest`, each with the value that approximates nothing."""


def split(knobs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Approximations, and the other knobs: those of the method. Earlier ones stay, for the request to refuse."""
    from adapedit.request import GONE

    chosen = {name: value for name, value in knobs.items() if name in EXACT or name in GONE}
    return chosen, {name: value for name, value in knobs.items() if name not in chosen}


def parse(assignments: Sequence[str] | None) -> dict[str, Any]:
    """NAME=VALUE, each, to fields of a request. Raises `AdapEditError` for names that are none."""
    from adapedit.request import GONE
    from adapedit_kernels.errors import AdapEditError

    chosen: dict[str, Any] = {}
    for text in assignments or ():
        name, sign, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if name in GONE:
            raise AdapEditError(f"{name} is gone: {GONE[name]}")
        if name not in EXACT:
            raise AdapEditError(
                f"there is no approximation {name!r}; use one of: {', '.join(EXACT)} (and the option --dtype)"
            )
        if not sign or not value.strip():
            example = 0.6 if name.endswith("until") else "dpm++"
            raise AdapEditError(f"--approximate {text!r} gives no value; write, say, {name}={example}")
        chosen[name] = value.strip()
    return chosen
