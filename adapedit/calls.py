"""What is given to the pipeline in one call, as requests: lists of prompts, several seeds, several pictures of each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adapedit.request import EditRequest, check_count
from adapedit_kernels.errors import AdapEditError

Draw = Callable[..., Tensor]
"""Standard normal numbers of so many sides, float32 on the CPU."""

TEXTS = (
    "source_prompt",
    "target_prompt",
    "negative_prompt",
    "source_negative_prompt",
    "target_negative_prompt",
)
"""Fields of which a call may give a list, one for each edit."""


class EditWarning(UserWarning):
    """An edit went through, but something about it is not as it should be."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """The requests of a call. draws: what each draws from; None: its seed. several: whether a list is to come back."""

    requests: list[EditRequest]
    draws: list[Draw | None]
    several: bool


@dataclass(eq=False)
class SharedDraws:
    """Numbers for several pictures out of one generator, in the order in which diffusers draws them: all at once."""

    generator: torch.Generator
    count: int
    drawn: list[Tensor] = field(default_factory=list)

    def of(self, index: int) -> Draw:
        """The numbers of one picture."""
        calls = iter(range(2**31))
        return lambda *sides: self._get(next(calls), sides)[:, index]

    def _get(self, call: int, sides: tuple[int, ...]) -> Tensor:
        if call == len(self.drawn):
            self.drawn.append(draw_from(self.generator, sides[0], self.count, *sides[1:]))
        return self.drawn[call]


def draw_from(generator: torch.Generator, *sides: int) -> Tensor:
    """A `Draw`, of a generator on any device."""
    return torch.randn(sides, generator=generator, device=generator.device, dtype=torch.float32).cpu()


def make_call(
    fields: Mapping[str, Any],
    *,
    seed: int | None = None,
    seeds: Sequence[int] | None = None,
    generator: Any = None,
    num_images_per_prompt: int | None = None,
) -> Call:
    """The requests of a call, in the order of diffusers: every picture of the first prompt, then of the next.

    fields: of `EditRequest` but the seed; those of `TEXTS` may be lists. seeds: a picture each, of every prompt.
    num_images_per_prompt: so many of each, of `seed` and those that follow, or out of a generator one after another.
    Raises `AdapEditError`.
    """
    ways = {"seed": seed, "seeds": seeds, "generator": generator}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise AdapEditError(f"got both {given[0]} and {given[1]}; give one of them")
    if num_images_per_prompt is not None:
        check_count("num_images_per_prompt", num_images_per_prompt)
        if seeds is not None:
            raise AdapEditError(
                "got seeds and num_images_per_prompt; each seed is a picture, so leave that out"
            )
    texts, count = _texts(fields), num_images_per_prompt or 1
    lists = any(isinstance(fields.get(name), (list, tuple)) for name in TEXTS)
    several = lists or seeds is not None or num_images_per_prompt is not None
    if generator is None:
        each = list(_sequence("seeds", seeds)) if seeds is not None else [0 if seed is None else seed]
        if count > 1 and isinstance(seed or 0, int):
            each = [each[0] + i for i in range(count)]
        named, count = each * len(texts), len(each)
        draws: list[Draw | None] = [None] * len(named)
    else:
        generators = _generators(generator, len(texts) * count)
        named = [one.initial_seed() % 2**63 for one in generators]
        draws = _draws(generators, isinstance(generator, (list, tuple)))
    spread = [text for text in texts for _ in range(count)]
    requests = [
        EditRequest.make(**{**fields, **text, "seed": one}) for text, one in zip(spread, named, strict=True)
    ]
    return Call(requests=requests, draws=draws, several=several or isinstance(generator, (list, tuple)))


def _texts(fields: Mapping[str, Any]) -> list[dict[str, str]]:
    """The texts of each edit, where some were given as lists."""
    lists = {name: list(fields[name]) for name in TEXTS if isinstance(fields.get(name), (list, tuple))}
    lengths = {name: len(texts) for name, texts in lists.items()}
    if len(set(lengths.values())) > 1:
        (one, few), (other, many) = list(lengths.items())[:2]
        raise AdapEditError(
            f"{one} has {few} texts, {other} has {many}; give as many of each, or one for all"
        )
    if 0 in lengths.values():
        raise AdapEditError(f"{next(iter(lengths))} is an empty list; give a text for each edit")
    count = next(iter(lengths.values()), 1)
    return [{name: texts[i] for name, texts in lists.items()} for i in range(count)]


def _sequence(name: str, values: Any) -> Sequence[Any]:
    if not isinstance(values, (list, tuple, range)) or not values:
        raise AdapEditError(f"{name} is {values!r}, wanted a list, such as [0, 1, 2]")
    return values


def _generators(given: Any, count: int) -> list[torch.Generator]:
    """One for each picture, the same for all or a list of as many."""
    generators = list(given) if isinstance(given, (list, tuple)) else [given] * count
    for one in generators:
        if not isinstance(one, torch.Generator):
            raise AdapEditError(f"generator is {one!r}, wanted a torch.Generator; of a number make a seed")
    if len(generators) != count:
        raise AdapEditError(
            f"got {len(generators)} generators for {count} pictures; give one for each, or one for all"
        )
    return generators


def _draws(generators: Sequence[torch.Generator], own: bool) -> list[Draw | None]:
    """What each picture draws from: a generator of its own, or one with the others. Says where no seed repeats it."""
    used = [one for one in generators if not _is_fresh(one)]
    if used or (not own and len(generators) > 1):
        why = (
            "the generator was used before"
            if used
            else "pictures after the first come from a generator in use"
        )
        warnings.warn(
            f"{why}, so no seed repeats this picture: give seed= or seeds= for what can be repeated",
            EditWarning,
            stacklevel=4,
        )
    if own:
        return [partial(draw_from, one) for one in generators]
    shared = SharedDraws(generators[0], len(generators))
    return [shared.of(index) for index in range(len(generators))]


def _is_fresh(generator: torch.Generator) -> bool:
    fresh = torch.Generator(generator.device).manual_seed(generator.initial_seed())
    return torch.equal(fresh.get_state(), generator.get_state())
