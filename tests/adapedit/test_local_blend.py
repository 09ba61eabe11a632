"""Local blends of both methods that have one: by the words that are named, or by those that the edit is about."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adapedit.cli import knobs
from adapedit.methods.adapedit import with_difference
from adapedit.methods.prompt_to_prompt import blend_tokens
from adapedit.pipeline import AdapEditPipeline
from adapedit.prompts.alignment import align
from tests.helpers.tiny_model import save_tiny_model
from tests.helpers.tokenizers import small_clip_tokenizer

METHODS = ("adapedit", "prompt-to-prompt")
SOURCE, TARGET = "a red dog standing on the grass", "a red dog sitting on the grass"


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> AdapEditPipeline:
    torch.set_num_threads(1)
    return AdapEditPipeline.from_pretrained(save_tiny_model(tmp_path_factory.mktemp("tiny")))


def edited(pipe: AdapEditPipeline, **options: object) -> tuple[np.ndarray, np.ndarray]:
    result = pipe(source_prompt=SOURCE, target_prompt=TARGET, num_inference_steps=4, seed=2, **options)
    return np.asarray(result.source_image).astype(int), np.asarray(result.target_image).astype(int)


@pytest.mark.parametrize("method", METHODS)
def test_true_means_the_words_that_the_edit_is_about(pipe, method):
    _, by_words = edited(pipe, method=method, local_blend=("standing", "sitting"), blend_threshold=0.9)
    _, by_edit = edited(pipe, method=method, local_blend=True, blend_threshold=0.9)
    _, free = edited(pipe, method=method)
    assert np.array_equal(by_words, by_edit)
    assert np.abs(by_edit - free).max() > 1


@pytest.mark.parametrize("method", METHODS)
def test_where_no_pixel_belongs_to_the_words_all_of_the_source_is_kept(pipe, method):
    source, target = edited(pipe, method=method, local_blend=True, blend_threshold=1.0, blend_start=0.0)
    assert np.array_equal(source, target)


@pytest.mark.parametrize(
    ("source", "target", "lost", "gained"),
    [
        (SOURCE, TARGET, ["standing"], ["sitting"]),
        ("a dog on the grass", "a red dog on the grass", ["dog"], ["red"]),
        ("a red dog on the grass", "a dog on the grass", ["red"], ["dog"]),
        (SOURCE, SOURCE, [], []),
    ],
)
def test_words_of_the_edit(source, target, lost, gained):
    alignment = align(source, target, small_clip_tokenizer())
    weights = blend_tokens(alignment, True)
    for row, words, expected in ((0, alignment.source_words, lost), (1, alignment.target_words, gained)):
        found = [word.text for word in words if weights[row, list(word.tokens)].all()]
        assert found == expected
        assert int(weights[row].sum()) == sum(len(word.tokens) for word in words if word.text in expected)


def test_cells_that_differ_belong_to_the_places_that_they_touch():
    mask = torch.zeros(6, 6)
    mask[1, 1] = 1
    latents = torch.zeros(2, 4, 12, 12)  # two cells of the latents to one of the mask
    latents[1, :, 4:8, 4:6] = 2.0  # two cells in a row below, the first touching the place by a corner
    latents[1, :, 10:, 10:] = 2.0  # apart
    latents[1, :, 2:4, 4:6] = 0.5  # touching, and hardly different
    found = with_difference(mask, latents, 1.0)
    assert found.dtype == mask.dtype
    assert found.nonzero().tolist() == [[1, 1], [2, 2], [3, 2]]
    assert torch.equal(with_difference(mask, latents, 3.0), mask)
    assert torch.equal(with_difference(torch.zeros(6, 6), latents, 0.0), torch.zeros(6, 6))


def test_the_blend_lets_go_of_what_differs(pipe):
    options = {"method": "adapedit", "observed_prompts": "both", "local_blend": True, "blend_threshold": 0.9}
    options |= {"blend_start": 0.0, "blend_grow": 0}
    source, narrow = edited(pipe, **options)
    _, wide = edited(pipe, **options, blend_difference=0.0)
    _, as_before = edited(pipe, **options, blend_difference=100.0)
    assert np.array_equal(narrow, as_before)
    assert (wide != source).sum() > (narrow != source).sum()


def test_the_command_line_takes_words_and_true():
    assert knobs.make("adapedit", knobs.parse(["local_blend=true"])).local_blend is True
    assert knobs.make("adapedit", knobs.parse(["local_blend=dog"])).local_blend == ("dog",)
    assert knobs.make("adapedit", knobs.parse(["blend_difference=1.5"])).blend_difference == 1.5
    assert knobs.make("prompt-to-prompt", knobs.parse(["local_blend=dog,cat"])).local_blend == ("dog", "cat")
