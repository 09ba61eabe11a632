"""The suite: a fixed list of scene edits over the kinds of edit, half for choosing defaults, half for reporting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from adapedit import AdapEditError
from benchmarks.scenes.world import ATTRIBUTES, Mention, Scene, caption, random_scene

Half = Literal["development", "test"]

KINDS = ("pose", "size", "colour", "kind", "place", "insertion", "two words")
"""Kinds of edit. The first five replace one word; an insertion adds an adjective that the source does not have."""

CASES_PER_KIND = 960
"""Enough in each half to tell methods apart by a fiftieth of the product, on one kind alone."""

STREAM = 7
"""Seed of the suite's scenes: neither that of the training pictures nor that of the held-out ones."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One attribute that an edit changes. figure: 0 left, 1 right, None: the place; before: None if it is inserted."""

    attribute: str
    figure: int | None
    before: str | None
    after: str


@dataclass(frozen=True, kw_only=True)
class Case:
    """One edit of the suite.

    name:   kind and number, for example "pose-07".
    seed:   of the generated source picture.
    source: a scene that the source prompt describes; target: the same scene after the true edit.
    """

    name: str
    kind: str
    half: Half
    seed: int
    source: Scene
    target: Scene
    source_prompt: str
    target_prompt: str
    changes: tuple[Change, ...]

    @property
    def figures(self) -> int:
        """How many figures the scene has."""
        return len(self.source.figures)


def scene_suite(
    half: Half | None = None, limit: int | None = None, kinds: Sequence[str] | None = None
) -> list[Case]:
    """The cases, always the same: all of them or those of one `half` and of some `kinds`, and the first `limit`.

    They are ordered so that any beginning is balanced over the kinds, over one and two figures, and over the halves.
    Raises `AdapEditError` for a kind that there is none of.
    """
    for kind in kinds or ():
        if kind not in KINDS:
            raise AdapEditError(f"there is no kind of edit {kind!r}; use some of: {', '.join(KINDS)}")
    wanted = [
        case
        for case in _all_cases()
        if (half is None or case.half == half) and (not kinds or case.kind in kinds)
    ]
    return wanted if limit is None else wanted[:limit]


@cache
def _all_cases() -> tuple[Case, ...]:
    return tuple(_case(kind, number) for number in range(CASES_PER_KIND) for kind in KINDS)


def _case(kind: str, number: int) -> Case:
    rng = np.random.default_rng((STREAM, KINDS.index(kind), number))
    figures = 1 + number % 2
    # Captions that differ by more than the edit (a/an before a word that is inserted) are drawn again.
    while True:
        source = random_scene(rng, two_figures=figures - 1)
        changes = _changes(kind, source, number, rng)
        target = source
        for change in changes:
            target = target.edited(change.attribute, change.after, change.figure or 0)
        pose = "after" if rng.random() < 0.5 else "before"
        named = tuple(Mention(pose=pose) for _ in source.figures)
        before = caption(source, _without(named, changes)).text
        after = caption(target, named).text
        kinds = {figure.kind for figure in target.figures}
        if _differ_by(before.split(), after.split(), changes) and len(kinds) == figures:
            break
    return Case(
        name=f"{kind.replace(' ', '-')}-{number:02d}",
        kind=kind,
        half="development" if number // 2 % 2 == 0 else "test",
        seed=int(rng.integers(2**31)),
        source=source,
        target=target,
        source_prompt=before,
        target_prompt=after,
        changes=changes,
    )


def _changes(kind: str, scene: Scene, number: int, rng: np.random.Generator) -> tuple[Change, ...]:
    """What is edited; where there are two figures, the left and the right one in turn."""
    figure = number // 4 % 2 if len(scene.figures) == 2 else 0
    if kind == "place":
        return (_change("place", None, scene, rng),)
    if kind == "insertion":
        # Of two sizes a source that names none shows the new one half of the time, so most insertions are colours.
        attribute = ("colour", "pose", "colour", "size", "colour", "pose")[number // 4 % 6]
        return (_change(attribute, figure, scene, rng, inserted=True),)
    if kind != "two words":
        return (_change(kind, figure, scene, rng),)
    first, second = rng.permutation(("pose", "size", "colour", "kind"))[:2]
    if len(scene.figures) == 1 or number // 4 % 3 == 0:
        return _change(first, figure, scene, rng), _change(second, figure, scene, rng)
    if number // 4 % 3 == 1:
        return _change(first, 0, scene, rng), _change(second, 1, scene, rng)
    # The other figure is what has to stay: with a single one nothing would be left to compare.
    return _change(first, figure, scene, rng), _change("place", None, scene, rng)


def _change(
    attribute: str, figure: int | None, scene: Scene, rng: np.random.Generator, inserted: bool = False
) -> Change:
    before = scene.place if figure is None else getattr(scene.figures[figure], attribute)
    others = [value for value in ATTRIBUTES[attribute] if value != before]
    after = others[rng.integers(len(others))]
    return Change(attribute=str(attribute), figure=figure, before=None if inserted else before, after=after)


def _without(named: tuple[Mention, ...], changes: tuple[Change, ...]) -> tuple[Mention, ...]:
    """The mentions of the source: an attribute that is inserted is not named there."""
    mentions = list(named)
    for change in changes:
        if change.before is None and change.figure is not None:
            old = mentions[change.figure]
            mentions[change.figure] = Mention(
                size=old.size and change.attribute != "size",
                colour=old.colour and change.attribute != "colour",
                pose=None if change.attribute == "pose" else old.pose,
            )
    return tuple(mentions)


def _differ_by(before: list[str], after: list[str], changes: tuple[Change, ...]) -> bool:
    inserted = [change.after for change in changes if change.before is None]
    if inserted:
        rest = [after[:i] + after[i + 1 :] for i, word in enumerate(after) if word == inserted[0]]
        return before in rest
    if len(before) != len(after):
        return False
    return sum(a != b for a, b in zip(before, after, strict=True)) == len(changes)
