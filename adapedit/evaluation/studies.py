"""What is compared: the methods with each other, the method without its parts, its knobs, and its variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from adapedit.methods import METHODS, make_settings
from adapedit_kernels.errors import AdapEditError

Knobs = Mapping[str, Mapping[str, Any]]
"""Per method, knobs that hold for all its variants in a study."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A knob at several values. expected: the sign that its curves should have, by Figure 7 of the paper."""

    knob: str
    values: tuple[float, ...]
    expected: int
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def label(self, value: float) -> str:
        return f"{self.knob} = {value:g}"


@dataclass(frozen=True, kw_only=True)
class Study:
    """Variants by label, the one that the others are compared with first; and the curves to draw, if any."""

    name: str
    title: str
    variants: Mapping[str, Any]
    sweeps: tuple[Sweep, ...] = ()

    def for_model(self, model: Any) -> Study:
        """The same without methods that want a model of their own."""
        return replace(
            self, variants={k: v for k, v in self.variants.items() if v.name != "instruct-pix2pix"}
        )


SWEEPS = (
    Sweep(knob="lambda_tau", values=(0.0, 0.5, 1.0, 1.5, 2.0, 3.0), expected=-1),
    Sweep(knob="lambda_s", values=(0.0, 0.25, 0.5, 0.75, 0.9, 1.0), expected=+1),
    Sweep(
        knob="lambda_spatial", values=(0.0, 0.25, 0.5, 0.75, 1.0, 2.0), expected=+1, fixed={"lambda_s": 0.9}
    ),
)
"""Figure 7: less lambda_tau, more lambda_s and more lambda_S each move the edit further from the source."""

ABLATIONS: Mapping[str, Mapping[str, Any]] = {
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

PARTS = {"fwt": "without FWT", "dps": "without DPS", "mask": "without the mask"}
"""The paper's own parts, by what switches them off, and their rows of "ablation"."""

WITH_BLEND = "prompt-to-prompt, local blend"
"""A further row of "scenes": a method whose paper has a local blend that is off by default."""

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "adapedit": {},
    "two passes": {"two_pass": True},
    "released formulas": {"variant": "released"},
}

TITLES = {
    "scenes": "All methods",
    "ablation": "AdapEdit without its parts (Figure 6)",
    "knobs": "AdapEdit's knobs (Figure 7)",
    "variants": "One pass or two, paper or released formulas, static or per-step map",
}
"""The studies by name."""


def make_study(
    name: str,
    methods: Sequence[str] | None = None,
    knobs: Knobs | None = None,
    swept: Sequence[str] | None = None,
    parts: Sequence[str] | None = None,
) -> Study:
    """A study by its name.

    `methods` chooses among those of "scenes", `swept` among the curves of "knobs", `parts` among what "ablation" goes
    without, of the paper's own parts alone.

    Raises `AdapEditError` for unknown names.
    """
    knobs = knobs or {}
    for method in (*knobs, *(methods or ())):
        if method not in METHODS:
            raise AdapEditError(f"there is no method {method!r}; use some of: {', '.join(METHODS)}")
    if name not in TITLES:
        raise AdapEditError(f"there is no suite {name!r}; use one of: {', '.join(TITLES)}")
    if methods and name != "scenes":
        raise AdapEditError(
            f"{name} is a study of adapedit alone; leave --methods out, or use the suite scenes"
        )
    known = [sweep.knob for sweep in SWEEPS]
    for knob in swept or ():
        if name != "knobs" or knob.replace("-", "_") not in known:
            raise AdapEditError(
                f"{knob!r} is to be swept in {name}; the suite knobs sweeps {', '.join(known)}"
            )
    for part in parts or ():
        if name != "ablation" or part not in PARTS:
            raise AdapEditError(
                f"{part!r} is a part to go without in {name}; the suite ablation goes without {', '.join(PARTS)}"
            )
    wanted = known if swept is None else [knob.replace("-", "_") for knob in swept]
    own = knobs.get("adapedit", {})
    sweeps = tuple(sweep for sweep in SWEEPS if sweep.knob in wanted) if name == "knobs" else ()
    if name == "scenes":
        variants = {method: make_settings(method, **knobs.get(method, {})) for method in methods or METHODS}
        if methods is None:
            given = knobs.get("prompt-to-prompt", {})
            blend = given.get("local_blend") or True
            variants[WITH_BLEND] = make_settings("prompt-to-prompt", **{**given, "local_blend": blend})
    elif name == "knobs":
        variants = {"adapedit": make_settings("adapedit", **own)} | {
            sweep.label(value): make_settings("adapedit", **{**own, **sweep.fixed, sweep.knob: value})
            for sweep in sweeps
            for value in sweep.values
        }
    else:
        table = ABLATIONS if name == "ablation" else VARIANTS
        if parts:
            table = {label: table[label] for label in ("adapedit", *(PARTS[part] for part in parts))}
        made = {label: make_settings("adapedit", **{**own, **changes}) for label, changes in table.items()}
        # What `knobs` leave out already is the whole that the rest is compared with. Knobs that were not named are the
        # model's, whatever they are here.
        named = {label: one.model_dump(exclude_unset=True) for label, one in made.items()}
        whole = named["adapedit"]
        variants = {label: one for label, one in made.items() if label == "adapedit" or named[label] != whole}
    return Study(name=name, title=TITLES[name], variants=variants, sweeps=sweeps)
