"""The suite: a fixed list of scene edits over the kinds of edit, half for choosing defaults, half for reporting.

Half of the prompts are full, and half open: they name what is not usual, and what is edited.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from typing import Literal

import numpy as np

from adapedit import AdapEditError
from benchmarks.scenes.world import (
    ATTRIBUTES,
    Mention,
    Scene,
    caption,
    random_scene,
    usual,
)

Half = Literal["development", "test"]

KINDS = ("pose", "size", "colour", "kind", "place", "insertion", "two words")
"""Kinds of edit. The first five replace one word; an insertion adds what the source does not name."""

PROMPTS: tuple[Literal["full"], Literal["open"]] = ("full", "open")

INSERTED = ("colour", "pose", "colour", "size", "colour", "pose")

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
    prompts: Literal["full", "open"]

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
    figures, prompts = 1 + number % 2, PROMPTS[number // 4 % 2]
    while (
        True
    ):  # scenes that the edit can't be made of are drawn again, and captions that differ by more than it
        source = random_scene(rng, two_figures=figures - 1)
        changes = _changes(kind, source, number, rng)
        if not all(_possible(change, source) for change in changes):
            continue
        for change in changes:
            if change.before is None:
                source = source.edited(change.attribute, _meant(source, change), change.figure or 0)
        target = source
        for change in changes:
            target = target.edited(change.attribute, change.after, change.figure or 0)
        before, after = _captions(source, target, changes, prompts, rng)
        kinds = {figure.kind for figure in target.figures}
        if _differ_by(before.split(), after.split(), changes) and len(kinds) == figures:
            break
    return Case(
        name=f"{kind.replace(' ', '-')}-{number:02d}",
        kind=kind,
        half="development" if number // 2 % 2 == 0 else "test",
        prompts=prompts,
        seed=int(rng.integers(2**31)),
        source=source,
        target=target,
        source_prompt=before,
        target_prompt=after,
        changes=changes,
    )


def _changes(kind: str, scene: Scene, number: int, rng: np.random.Generator) -> tuple[Change, ...]:
    """What is edited; where there are two figures, the left and the right one in turn."""
    figure = number // 8 % 2 if len(scene.figures) == 2 else 0
    if kind == "place":
        return (_change("place", None, scene, rng),)
    if kind == "insertion":
        attribute = INSERTED[number // 8 % len(INSERTED)]
        return (_change(attribute, figure, scene, rng, inserted=True),)
    if kind != "two words":
        return (_change(kind, figure, scene, rng),)
    first, second = rng.permutation(("pose", "size", "colour", "kind"))[:2]
    if len(scene.figures) == 1 or number // 8 % 3 == 0:
        return _change(first, figure, scene, rng), _change(second, figure, scene, rng)
    if number // 8 % 3 == 1:
        return _change(first, 0, scene, rng), _change(second, 1, scene, rng)
    # The other figure is what has to stay: with a single one nothing would be left to compare.
    return _change(first, figure, scene, rng), _change("place", None, scene, rng)


def _value(scene: Scene, attribute: str, figure: int | None) -> str:
    return str(getattr(scene if figure is None else scene.figures[figure], attribute))


def _meant(scene: Scene, change: Change) -> str:
    """What a source shows that does not name what is inserted."""
    return usual(change.attribute, scene.figures[change.figure or 0].kind)


def _possible(change: Change, scene: Scene) -> bool:
    """Whether an insertion adds what is not meant anyway."""
    return change.before is not None or change.after != _meant(scene, change)


def _change(
    attribute: str, figure: int | None, scene: Scene, rng: np.random.Generator, inserted: bool = False
) -> Change:
    before = _value(scene, attribute, figure)
    others = [value for value in ATTRIBUTES[attribute] if value != before]
    after = others[rng.integers(len(others))]
    return Change(attribute=str(attribute), figure=figure, before=None if inserted else before, after=after)


def _captions(
    source: Scene, target: Scene, changes: tuple[Change, ...], prompts: str, rng: np.random.Generator
) -> tuple[str, str]:
    """Prompts of both scenes that name the same attributes, but for what is inserted."""
    where = "after" if rng.random() < 0.5 else "before"
    mentions: tuple[list[Mention], list[Mention]] = ([], [])
    for index, pair in enumerate(zip(source.figures, target.figures, strict=True)):
        named = {
            name
            for name in ("size", "colour", "pose")
            if prompts == "full" or any(getattr(one, name) != usual(name, one.kind) for one in pair)
        }
        inserted = {c.attribute for c in changes if c.before is None and c.figure == index}
        for said, words in zip(mentions, (named - inserted, named), strict=True):
            pose = where if "pose" in words else None
            said.append(Mention(size="size" in words, colour="colour" in words, pose=pose))
    place = prompts == "full" or any(scene.place != usual("place") for scene in (source, target))
    before, after = (
        caption(scene, tuple(said), place=place).text
        for scene, said in zip((source, target), mentions, strict=True)
    )
    return before, after


def _differ_by(before: list[str], after: list[str], changes: tuple[Change, ...]) -> bool:
    """Whether two captions differ by what is changed alone: not by an article."""
    steps = [step for step in SequenceMatcher(None, before, after, False).get_opcodes() if step[0] != "equal"]
    added = [word for _, _, _, start, stop in steps for word in after[start:stop]]
    if changes[0].before is None:
        return all(step[0] == "insert" for step in steps) and added == [changes[0].after]
    different = sum(a != b for a, b in zip(before, after, strict=False))
    return len(before) == len(after) and different == len(changes) == len(added)
