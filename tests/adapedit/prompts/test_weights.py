"""The community's weights: read as written, and worth what an equalizer is."""

from __future__ import annotations

from typing import Any

import pytest

from adapedit import AdapEditError, EditRequest
from adapedit.prompts.weights import read_weights
from tests.helpers.edits import SOURCE, grey_levels


@pytest.mark.parametrize(
    ("prompt", "text", "factors"),
    [
        ("a red dog", "a red dog", []),
        ("a (red:1.3) dog", "a red dog", [("red", 1, 1.3)]),
        ("a (red) dog", "a red dog", [("red", 1, 1.1)]),
        ("a ((red)) [dog]", "a red dog", [("red", 1, 1.21), ("dog", 1, 0.909091)]),
        ("(a (red:2) dog:0.5)", "a red dog", [("a", 1, 0.5), ("dog", 1, 0.5)]),
        ("a dog and a (dog : 1.5 )", "a dog and a dog", [("dog", 2, 1.5)]),
        ("(two words:-1), done", "two words, done", [("two", 1, -1.0), ("words", 1, -1.0)]),
        (r"a dog \(a real one\)", "a dog (a real one)", []),
        ("at 10:30 a cat: grey", "at 10:30 a cat: grey", []),
        ("(well-known:1.2) dog's", "well-known dog's", [("well-known", 1, 1.2)]),
        ("", "", []),
    ],
)
def test_weights_are_read_as_they_are_written(prompt: str, text: str, factors: list[Any]) -> None:
    found = read_weights(prompt)
    assert found.text == text
    assert [(one.word, one.occurrence, one.value) for one in found.factors] == factors


@pytest.mark.parametrize("prompt", ["a (dog", "a dog)", "a [dog)", "a (dog]", "a [dog:1.2)"])
def test_brackets_that_do_not_close_are_refused(prompt: str) -> None:
    with pytest.raises(AdapEditError, match=r"has no counterpart; write \\") as error:
        read_weights(prompt)
    assert "\n" not in str(error.value)


def asked(target: str, **more: Any) -> EditRequest:
    return EditRequest.make(
        source_prompt=SOURCE,
        target_prompt=target,
        num_inference_steps=3,
        **{"method": "prompt-to-prompt", **more},
    )


def test_they_fill_the_equalizer(pipe):
    written = asked("a (red:1.5) dog standing on the grass", prompt_weights=True)
    given = asked(SOURCE, method={"name": "prompt-to-prompt", "equalizer": {"red": 1.5}})
    one, other = pipe.edit_batch([written, given])
    assert grey_levels(one.target_image, other.target_image) == 0
    assert grey_levels(one.target_image, one.source_image) > 0
    assert written.target_prompt == SOURCE and not written.prompt_weights
    assert EditRequest.make(**written.model_dump(mode="json")) == written
    words = pipe(SOURCE, "a (red:1.5) dog standing on the grass", method="plain", num_inference_steps=1)
    assert "(red:1.5)" in words.request.target_prompt


@pytest.mark.parametrize(
    ("target", "more", "said"),
    [
        ("a (red:1.5) dog", {"method": "adapedit"}, "which adapedit has not; use method='prompt-to-prompt'"),
        (
            "a (red:1.5) dog",
            {"method": {"name": "prompt-to-prompt", "equalizer": {"dog": 2}}},
            "got weights in the",
        ),
        (
            "a red dog",
            {"source_prompt": "a (red) dog"},
            "the source prompt weights 'red'; weights are of the target",
        ),
        ("a (red dog", {}, "has no counterpart"),
        ("a (red:99999) dog", {}, "value"),
        ("a red dog", {"prompt_weights": 3}, "prompt_weights is 3"),
    ],
)
def test_what_can_not_be_weighted(target: str, more: dict[str, Any], said: str) -> None:
    fields = {
        "source_prompt": SOURCE,
        "target_prompt": target,
        "prompt_weights": True,
        "method": "prompt-to-prompt",
    }
    with pytest.raises(AdapEditError, match=said) as error:
        EditRequest.make(**{**fields, **more})
    assert "\n" not in str(error.value)
