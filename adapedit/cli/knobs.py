"""Knobs by name: KNOB=VALUE from the command line to settings of a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from adapedit.approximations import EXACT
from adapedit.methods import METHODS, make_settings
from adapedit.methods.words import WordValue
from adapedit.request import EditRequest
from adapedit_kernels.errors import AdapEditError

OF_REQUEST = {
    "seed": "seed",
    "steps": "num_inference_steps",
    "num_inference_steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "guidance_scale": "guidance_scale",
    **{name: name for name in EXACT},
}
"""What can be swept besides a method's knobs."""


def knob_name(text: str) -> str:
    """`lambda-tau` and `--lambda-tau` are `lambda_tau`."""
    return text.strip().lstrip("-").replace("-", "_")


def knob_value(text: str) -> Any:
    """None for `none`, a truth for `true` and `false`, a number where it is one, else the text."""
    words = {"none": None, "null": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


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


def make(method: str, knobs: Mapping[str, Any]) -> Any:
    """Settings of one method, of values as text: `a,b` where words are wanted, `word:2,other:0.5` for their values."""
    if method not in METHODS:
        return make_settings(method)
    fields, ready = METHODS[method].model_fields, dict(knobs)
    for name, value in knobs.items():
        if isinstance(value, str) and name in fields and fields[name].default == ():
            if fields[name].annotation == tuple[WordValue, ...]:
                if ":" not in value:
                    raise AdapEditError(
                        f"{name} is {value!r}; write it as WORD:VALUE, such as {name}=dog:0.5"
                    )
                pairs = [part.rpartition(":") for part in value.split(",")]
                ready[name] = [{"word": word, "value": knob_value(number)} for word, _, number in pairs]
                continue
            ready[name] = [part for part in value.replace(",", " ").split() if part]
    return make_settings(method, **ready)


def make_each(methods: Sequence[str], knobs: Mapping[str, Any]) -> list[Any]:
    """Settings of several methods: a knob goes to all that have it, METHOD.KNOB to that one."""
    settings, used = [], set()
    for method in methods:
        fields = METHODS[method].model_fields if method in METHODS else {}
        own = {name: value for name, value in knobs.items() if name in fields}
        for name, value in knobs.items():
            owner, dot, knob = name.rpartition(".")
            if dot and owner == method:
                own[knob] = value
                used.add(name)
        used |= own.keys()
        settings.append(make(method, own))
    unused = [name for name in knobs if name not in used]
    if unused:
        raise AdapEditError(f"none of {', '.join(methods)} has a knob {unused[0]!r}; leave it out")
    return settings


def methods_for() -> list[str]:
    """All methods that one model can run; InstructPix2Pix wants a model of its own."""
    return [method for method in METHODS if method != "instruct-pix2pix"]


def varied(
    fields: Mapping[str, Any], method: str, knobs: Mapping[str, Any], knob: str, values: Sequence[str]
) -> list[EditRequest]:
    """One request for each value of a knob of the method, of an approximation, or of seed, steps or guidance."""
    name = knob_name(knob)
    if not values:
        raise AdapEditError("--values is empty; give numbers with commas between them, such as 0.2,0.5,1.0")
    requests = []
    for value in values:
        if name in OF_REQUEST:
            settings, field = make(method, knobs), {OF_REQUEST[name]: value}
        else:
            settings, field = make(method, {**knobs, name: knob_value(value)}), {}
        requests.append(EditRequest.make(**{**fields, **field, "method": settings}))
    return requests
