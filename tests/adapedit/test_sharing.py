"""K edits of one source in 2 (1 + K) rows equal K separate edits."""

from __future__ import annotations

import pytest

from adapedit_engine.runners.pytorch import PyTorchRunner
from tests.helpers.edits import LONGER, SOURCE, STEPS, TARGET, grey_levels, request

EDITS = (
    request(lambda_tau=0.2),
    request(lambda_tau=1.5),
    request(SOURCE, LONGER, lambda_s=0.5),
    request(method="plain"),
    request(SOURCE, "a red cat", method="prompt-to-prompt"),
    request(SOURCE, LONGER, method="prompt-to-prompt", local_blend=("dog",)),
    request(SOURCE, TARGET, method="prompt-to-prompt", local_blend=("dog",)),
    request(),
    request(SOURCE, LONGER, lambda_s=0.7),
    request(SOURCE, LONGER, lambda_tau=0.3),
    request(SOURCE, LONGER, spatial_grow=1),
    request(SOURCE, LONGER, observed_prompts="both", local_blend=True, blend_threshold=0.8),
    request(SOURCE, TARGET, observed_prompts="both", local_blend=True, blend_threshold=0.8),
    request(SOURCE, TARGET, observed_prompts="both", local_blend=True, blend_threshold=0.6),
    request(two_pass=True, observed_prompts="both", local_blend=True, blend_threshold=0.6),
    request(two_pass=True, observed_prompts="both", local_blend=True, blend_difference=0.1),
    request(SOURCE, LONGER, two_pass=True, observed_prompts="both", lambda_tau=0.4, spatial_grow=1),
    request(SOURCE, LONGER, observed_prompts="both"),
    request(two_pass=True),
)


@pytest.fixture
def rows(monkeypatch) -> list[int]:
    """Rows of every call of the UNet."""
    seen: list[int] = []
    infer = PyTorchRunner.infer

    def counting(self, inputs, *others, **options):
        seen.append(inputs["sample"].shape[0])
        return infer(self, inputs, *others, **options)

    monkeypatch.setattr(PyTorchRunner, "infer", counting)
    return seen


@pytest.mark.parametrize("max_rows", [None, 10])
def test_edits_of_one_source_equal_separate_edits(pipe, max_rows):
    separate = [pipe.edit_batch([one], share_sources=False)[0] for one in EDITS]
    for alone, shared in zip(separate, pipe.edit_batch(EDITS, max_rows=max_rows), strict=True):
        assert grey_levels(shared.source_image, alone.source_image) <= 1
        assert grey_levels(shared.target_image, alone.target_image) <= 1
        assert shared.request == alone.request and shared.warnings == alone.warnings
        assert shared.source_maps == pytest.approx(alone.source_maps, abs=1e-4)
        assert shared.target_maps == pytest.approx(alone.target_maps, abs=1e-4)
        for one, other in zip(shared.words, alone.words, strict=True):
            assert (one.text, one.kind) == (other.text, other.kind)
            assert (one.word_steps is None) == (other.word_steps is None)
            assert one.word_steps == (
                None if other.word_steps is None else pytest.approx(other.word_steps, abs=1e-4)
            )
        assert (shared.spatial_map is None) == (alone.spatial_map is None)


def test_rows_are_two_for_each_of_source_and_targets(pipe, rows):
    edits = [request(two_pass=True, lambda_tau=value) for value in (0.2, 0.5, 1.0)]
    pipe.edit_batch(edits)
    # One pass over the target that all have in common, then the source with three targets.
    assert rows == [2] * STEPS + [8] * STEPS
    rows.clear()
    pipe.edit_batch(edits, share_sources=False)
    assert rows == [6] * STEPS + [12] * STEPS


def test_a_first_pass_that_edits_have_in_common_is_run_once(pipe, rows):
    """Over both prompts, too: three knobs of one edit look at the same two pictures."""
    edits = [request(two_pass=True, lambda_tau=value, observed_prompts="both") for value in (0.2, 0.5, 1.0)]
    others = [request(SOURCE, LONGER, two_pass=True, observed_prompts="both")]
    pipe.edit_batch(edits + others)
    # The source with two targets; then the source with four.
    assert rows == [6] * STEPS + [10] * STEPS


def test_shared_edits_are_split_where_they_take_too_many_rows(pipe, rows):
    pipe.edit_batch([request(fwt=False, dps=False, lambda_s=value) for value in (0.1, 0.2, 0.3)], max_rows=6)
    assert rows == [6] * STEPS + [4] * STEPS


def test_edits_whose_maps_are_widened_by_other_cells_share_their_source(pipe, rows):
    pipe.edit_batch([request(), request(SOURCE, LONGER, spatial_grow=1)])
    assert rows == [6] * STEPS


@pytest.mark.parametrize(
    "other",
    [
        request(seed=1, fwt=False, dps=False),
        request(steps=STEPS + 1, fwt=False, dps=False),
        request("a red dog", TARGET, fwt=False, dps=False),
        request(guidance_until=0.5),
    ],
)
def test_what_differs_in_more_than_the_target_is_not_shared(pipe, rows, other):
    pipe.edit_batch([request(fwt=False, dps=False), other])
    assert rows[0] == 8
