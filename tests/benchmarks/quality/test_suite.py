"""The suite is fixed, balanced, and its captions differ by exactly the edit."""

from __future__ import annotations

from collections import Counter
from difflib import SequenceMatcher

import pytest

from adapedit import AdapEditError
from benchmarks.quality.suite import CASES_PER_KIND, KINDS, STREAM, Case, scene_suite
from benchmarks.scenes.dataset import HELD_OUT_SEED, TRAIN_SEED
from benchmarks.scenes.world import FUNCTION_WORDS, VOCABULARY, usual

ALL = scene_suite()


def test_it_is_large_and_always_the_same() -> None:
    assert len(ALL) == len(KINDS) * CASES_PER_KIND >= 300
    assert scene_suite() == ALL
    assert len({case.name for case in ALL}) == len({case.seed for case in ALL}) == len(ALL)


def test_its_scenes_are_not_those_of_the_training() -> None:
    assert STREAM not in (TRAIN_SEED, HELD_OUT_SEED)


def test_halves_are_balanced_over_kinds_and_figures_and_share_nothing() -> None:
    counts = Counter((case.kind, case.half, case.figures) for case in ALL)
    assert len(counts) == len(KINDS) * 2 * 2
    assert set(counts.values()) == {CASES_PER_KIND // 4}
    development, test = scene_suite("development"), scene_suite("test")
    assert len(development) == len(test) and not {c.name for c in development} & {c.name for c in test}


@pytest.mark.parametrize("half", [None, "development", "test"])
def test_any_beginning_is_balanced_over_kinds(half: str | None) -> None:
    for limit in (7, 20, 45):
        counts = Counter(case.kind for case in scene_suite(half, limit))  # type: ignore[arg-type]
        assert sum(counts.values()) == limit and max(counts.values()) - min(counts.values()) <= 1
    assert {case.figures for case in scene_suite(half, 14)} == {1, 2}


@pytest.mark.parametrize("half", ["development", "test"])
def test_half_of_the_prompts_are_open_and_mean_what_they_do_not_say(half: str) -> None:
    counts = Counter(case.prompts for case in scene_suite(half))  # type: ignore[arg-type]
    assert counts["full"] == counts["open"]
    shorter = 0
    for case in scene_suite(half, 200):  # type: ignore[arg-type]
        for scene, prompt in ((case.source, case.source_prompt), (case.target, case.target_prompt)):
            said = prompt.split()
            assert scene.place in said or scene.place == usual("place")
            assert all(f.pose in said or f.pose == usual("pose") for f in scene.figures)
            assert all(f.colour in said or f.colour == usual("colour", f.kind) for f in scene.figures)
            named = [scene.place, *(word for f in scene.figures for word in (f.size, f.pose, f.colour))]
            shorter += case.prompts == "open" and not set(named) <= set(said)
    assert shorter > 80


def test_both_figures_get_edited() -> None:
    for kind in ("pose", "size", "colour", "kind", "insertion"):
        edited = Counter(case.changes[0].figure for case in ALL if case.kind == kind and case.figures == 2)
        assert edited[0] and edited[1]


@pytest.mark.parametrize("kind", KINDS)
def test_captions_differ_by_the_edit_alone(kind: str) -> None:
    cases = scene_suite(kinds=[kind])
    assert len(cases) == CASES_PER_KIND
    for case in cases:
        before, after = case.source_prompt.split(), case.target_prompt.split()
        assert set(before + after) <= set(VOCABULARY)
        steps = [op for op in SequenceMatcher(None, before, after, False).get_opcodes() if op[0] != "equal"]
        new = [w for _, _, _, start, stop in steps for w in after[start:stop] if w not in FUNCTION_WORDS]
        assert sorted(new) == sorted(change.after for change in case.changes), case.name
        assert {op[0] for op in steps} == {"insert" if kind == "insertion" else "replace"}, case.name


def test_some_kinds_alone_and_none_that_there_is_not() -> None:
    assert [case.kind for case in scene_suite("test", 4, ["pose", "size"])] == ["pose", "size"] * 2
    with pytest.raises(AdapEditError, match="no kind of edit 'mood'; use some of: pose, size"):
        scene_suite(kinds=["pose", "mood"])


@pytest.mark.parametrize("case", ALL[:40], ids=lambda case: case.name)
def test_the_target_scene_is_the_true_edit(case: Case) -> None:
    assert case.target.layout == case.source.layout
    scene = case.source
    for change in case.changes:
        scene = scene.edited(change.attribute, change.after, change.figure or 0)
    assert scene == case.target != case.source
