"""Knobs by name: KNOB=VALUE from the command line to settings of methods, inversions and requests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from adapedit.cli.options import Picture
from adapedit.inversion import INVERSIONS, make_inversion_settings
from adapedit.methods import METHODS, make_settings
from adapedit.request import EditRequest
from adapedit_kernels.errors import AdapEditError

APPROXIMATIONS = {"guidance_until": "0.6", "solver": "dpm++"}
"""Fields of a request that save time at some loss, each with an example."""
OF_REQUEST = {
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    **{name: name for name in ("seed", "num_inference_steps", "guidance_scale", *APPROXIMATIONS)},
}
"""What can be swept besides a method's knobs."""
MAX_VALUES = 64


def knob_name(text: str) -> str:
    """`lambda-tau` and `--lambda-tau` are `lambda_tau`."""
    return text.strip().lstrip("-").replace("-", "_")


def knob_value(text: str) -> Any:
    """The value: None for `none`, a number, true or false where it is one, else the text."""
    words = {"none": "null", "true": "true", "false": "false"}
    try:
        value = json.loads(words.get(text.lower(), text))
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, (str, list, dict)) else value


def parse(assignments: Sequence[str] | None) -> dict[str, Any]:
    """KNOB=VALUE, each, to {knob: value}; METHOD.KNOB stays as it is."""
    knobs: dict[str, Any] = {}
    for text in assignments or ():
        name, sign, value = text.partition("=")
        if not sign or not name.strip():
            raise AdapEditError(f"--set {text!r} is no assignment; write it as --set KNOB=VALUE")
        method, dot, knob = name.rpartition(".")
        knobs[f"{method}.{knob_name(knob)}" if dot else knob_name(name)] = knob_value(value.strip())
    return knobs


def approximations(assignments: Sequence[str] | None) -> dict[str, Any]:
    """NAME=VALUE, each, to fields of a request. Raises `AdapEditError` for names that are none."""
    chosen: dict[str, Any] = {}
    for text in assignments or ():
        name, sign, value = text.partition("=")
        name = knob_name(name)
        if name not in APPROXIMATIONS:
            known = ", ".join(APPROXIMATIONS)
            raise AdapEditError(
                f"there is no approximation {name!r}; use one of: {known} (and the option --dtype)"
            )
        if not sign or not value.strip():
            raise AdapEditError(
                f"--approximate {text!r} gives no value; write, say, {name}={APPROXIMATIONS[name]}"
            )
        chosen[name] = value.strip()
    return chosen


def make(method: str, knobs: Mapping[str, Any]) -> Any:
    """A method, of values as text: `a,b` where words are wanted, `word:2,other:0.5` for their values."""
    fields, ready = METHODS[method].model_fields if method in METHODS else {}, dict(knobs)
    for name, value in knobs.items():
        kind = str(fields[name].annotation) if name in fields else ""
        if not isinstance(value, str) or "tuple" not in kind:
            continue
        if "Word" not in kind:
            ready[name] = value.replace(",", " ").split()
        elif ":" in value:
            pairs = [part.rpartition(":") for part in value.split(",")]
            ready[name] = [{"word": word.strip(), "value": knob_value(number)} for word, _, number in pairs]
        else:
            raise AdapEditError(f"{name} is {value!r}; write it as WORD:VALUE, such as {name}=dog:0.5")
    return make_settings(method, **ready)


def make_each(methods: Sequence[str], knobs: Mapping[str, Any]) -> list[Any]:
    """Several methods: a knob goes to all that have it, METHOD.KNOB to that one."""
    made, used = [], set()
    for method in methods:
        fields = METHODS[method].model_fields if method in METHODS else {}
        own = {name: value for name, value in knobs.items() if name in fields}
        for name, value in knobs.items():
            owner, dot, knob = name.rpartition(".")
            if dot and owner == method:
                own[knob] = value
                used.add(name)
        used |= own.keys()
        made.append(make(method, own))
    unused = [name for name in knobs if name not in used]
    if unused:
        raise AdapEditError(f"none of {', '.join(methods)} has a knob {unused[0]!r}; leave it out")
    return made


def varied(
    fields: Mapping[str, Any],
    method: str,
    knobs: Mapping[str, Any],
    knob: str,
    values: Sequence[str],
    *,
    option: str = "--values",
) -> list[EditRequest]:
    """One request for each value of a knob of the method, of an approximation, or of seed, steps or guidance.

    option: what errors call the values.
    """
    name = knob_name(knob)
    if not 1 <= len(values) <= MAX_VALUES:
        got = f"has {len(values)} values" if values else "is empty"
        raise AdapEditError(f"{option} {got}; give 1 to {MAX_VALUES} with commas between them, such as 0,1,2")
    requests = []
    for value in values:
        if name in OF_REQUEST:
            made, field = make(method, knobs), {OF_REQUEST[name]: value}
        else:
            made, field = make(method, {**knobs, name: knob_value(value)}), {}
        requests.append(EditRequest.make(**{**fields, **field, "method": made}))
    return requests


def picture(options: Picture, method: str | None = None) -> dict[str, Any]:
    """What a request has of the options for real pictures. method: the one that runs, where it is one."""
    name, assignments = options.inversion, options.inversion_set
    given = name is not None or bool(assignments)
    mask = {} if options.mask is None else {"mask": {"file": str(options.mask)}}
    if options.image is None:
        if given:
            raise AdapEditError("--inversion wants a picture; give one with --image")
        return mask
    if given and method in METHODS and not METHODS[method].inverts:
        raise AdapEditError(f"{method} edits a picture without inverting it; leave --inversion out")
    chosen = make_inversion_settings(name or "direct", **parse(assignments)) if given else None
    return {"image": {"file": str(options.image), "fit": options.fit}, "inversion": chosen, **mask}


def inversions(names: str | None, without_gradients: bool) -> dict[str, Any]:
    """Inversions by name; None: all that a model can run."""
    wanted = [name.strip() for name in names.split(",")] if names else list(INVERSIONS)
    if names is None and without_gradients:
        wanted.remove("null-text")
    return {name: make_inversion_settings(name) for name in wanted}
