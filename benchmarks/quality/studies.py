"""What is compared: the methods with each other, the method without its parts, its knobs, and its variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapedit import AdapEditError, EditRequest

Variant = Mapping[str, Any]
"""A method by its "name", with the knobs that are not to be its own: what a request takes as `method`."""

METHODS: Mapping[str, Variant] = {
    "adapedit": {},
    "prompt-to-prompt": {},
    "prompt-to-prompt, local blend": {"name": "prompt-to-prompt", "local_blend": True},
    "masactrl": {},
    "sdedit": {},
    "plain": {},
}
"""What is compared by default, by label; without a "name" the label is the method's."""

ABLATIONS: Mapping[str, Variant] = {
    "adapedit": {},
    "without FWT": {"fwt": False},
    "without DPS": {"dps": False},
    "without the mask": {"mask": False},
    "without the local blend": {"local_blend": False},
    "the target's map alone": {"observed_prompts": "target"},
    "the local blend alone": {
        "local_blend": True,
        "fwt": False,
        "dps": False,
        "cross_replace_steps": 0.0,
        "self_replace_steps": 0.0,
        "lambda_s": 1.0,
    },
}
"""Figure 6: one tau for all words, S = 1 everywhere, alpha_tau = 0. Then what this project adds to the paper: without
each, and without all but one."""

VARIANTS: Mapping[str, Variant] = {
    "adapedit": {},
    "two passes": {"two_pass": True},
    "released formulas": {"variant": "released"},
}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A knob at several values. expected: the sign that its curves should have, by Figure 7 of the paper."""

    knob: str
    values: tuple[float, ...]
    expected: int
    fixed: Variant = field(default_factory=dict)

    def label(self, value: float) -> str:
        return f"{self.knob} = {value:g}"


SWEEPS = (
    Sweep(knob="lambda_tau", values=(0.0, 0.5, 1.0, 1.5, 2.0, 3.0), expected=-1),
    Sweep(knob="lambda_s", values=(0.0, 0.25, 0.5, 0.75, 0.9, 1.0), expected=+1),
    Sweep(
        knob="lambda_spatial", values=(0.0, 0.25, 0.5, 0.75, 1.0, 2.0), expected=+1, fixed={"lambda_s": 0.9}
    ),
)
"""Figure 7: less lambda_tau, more lambda_s and more lambda_S each move the edit further from the source."""

TITLES = {
    "scenes": "All methods",
    "ablation": "AdapEdit without its parts (Figure 6)",
    "knobs": "AdapEdit's knobs (Figure 7)",
    "variants": "Variants of AdapEdit",
}
"""The studies by name."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """Variants by label, the one that the others are compared with first; and the curves to draw, if any."""

    name: str
    title: str
    variants: Mapping[str, Variant]
    sweeps: tuple[Sweep, ...] = ()


def make_study(
    name: str, only: Sequence[str] | None = None, knobs: Mapping[str, Variant] | None = None
) -> Study:
    """A study by its name.

    only:  labels (of "knobs": names of the knobs to sweep); by default all. "scenes" takes any method's name, too.
    knobs: per method, knobs that hold for all its variants.

    Raises `AdapEditError` for names, labels and knobs that there are none of.
    """
    own = {"name": "adapedit", **(knobs or {}).get("adapedit", {})}
    sweeps: tuple[Sweep, ...] = ()
    if name == "scenes":
        variants = {label: _method(label, knobs or {}) for label in only or METHODS}
    elif name == "knobs":
        known = {sweep.knob: sweep for sweep in SWEEPS}
        sweeps = tuple(known[knob] for knob in _known(only, known, name))
        variants = {"adapedit": own} | {
            sweep.label(value): {**own, **sweep.fixed, sweep.knob: value}
            for sweep in sweeps
            for value in sweep.values
        }
    elif name in TITLES:
        table = ABLATIONS if name == "ablation" else VARIANTS
        chosen = dict.fromkeys(["adapedit", *_known(only, table, name)])
        variants = {label: {**own, **table[label]} for label in chosen}
        # What the knobs leave out already is the whole that the rest is compared with.
        variants = {label: one for label, one in variants.items() if label == "adapedit" or one != own}
    else:
        raise AdapEditError(f"there is no study {name!r}; use one of: {', '.join(TITLES)}")
    for variant in variants.values():
        EditRequest.make(source_prompt="a dog", target_prompt="a cat", method=variant)
    return Study(name=name, title=TITLES[name], variants=variants, sweeps=sweeps)


def _method(label: str, knobs: Mapping[str, Variant]) -> Variant:
    changes = METHODS.get(label, {})
    name = changes.get("name", label)
    return {"name": name, **knobs.get(name, {}), **changes}


def _known(only: Sequence[str] | None, table: Mapping[str, Any], name: str) -> Sequence[str]:
    for label in only or ():
        if label not in table:
            raise AdapEditError(f"the study {name} has no {label!r}; use some of: {', '.join(table)}")
    return list(table) if only is None else only
