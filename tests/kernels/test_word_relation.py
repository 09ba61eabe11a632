"""The word relation: the reference against loops written from the specification, knobs, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from adapedit_kernels import AdapEditError, RelationKnobs, word_relation
from tests.kernels import loops
from tests.kernels.inputs import mixed_knobs, relation_inputs, to_numpy

KNOBS: list[dict[str, Any]] = [
    {},
    {"variant": "released", "threshold": 0.002, "threshold_mode": "absolute", "centre": False},
    {"normalise": "softmax", "temperature": 0.05, "lambda_tau": 0.7},
    {"threshold": 0.2, "threshold_mode": "absolute"},  # whole columns are masked at the smaller sizes
    {"threshold": 0.0, "centre": False},
]


def assert_is_the_loop(inputs: dict[str, torch.Tensor], knobs: RelationKnobs) -> None:
    found = word_relation(**inputs, knobs=knobs)
    for row in range(len(inputs["maps"])):
        single = [to_numpy(tensor[row]) for tensor in inputs.values()]
        wanted: Any = loops.word_relation(*single, *(knob[row].item() for knob in knobs))
        for got, want in zip(found, wanted, strict=True):
            np.testing.assert_allclose(got[row].numpy(), want, atol=1e-9)


@pytest.mark.parametrize("words", KNOBS)
@pytest.mark.parametrize("sizes", [(3, 9, 11, 5), (1, 1, 3, 2), (2, 30, 16, 8)])
def test_word_relation_is_the_loop(sizes: tuple[int, int, int, int], words: dict[str, Any]) -> None:
    assert_is_the_loop(relation_inputs(*sizes, torch.float64), RelationKnobs.make(sizes[0], **words))


def test_edits_with_different_knobs_share_a_call() -> None:
    """Each gets the loop's numbers, and those of a call of its own to the last bit."""
    inputs, knobs = relation_inputs(12, 9, 11, 5, torch.float64), mixed_knobs(12)
    assert_is_the_loop(inputs, knobs)
    inputs["features"], inputs["maps"] = inputs["features"].float(), inputs["maps"].float()
    together = word_relation(**inputs, knobs=knobs)
    for row in range(12):
        alike = RelationKnobs(*(knob[row].expand(12) for knob in knobs))
        for got, want in zip(together, word_relation(**inputs, knobs=alike), strict=True):
            assert torch.equal(got[row], want[row])


def test_the_form_that_is_not_taken_has_no_part_in_gradients() -> None:
    inputs, knobs = relation_inputs(12, 9, 11, 5, torch.float32), mixed_knobs(12)
    inputs["maps"][::2, :, 3] = 0  # masked whole: nothing to divide by

    def gradients(knobs: RelationKnobs) -> tuple[torch.Tensor, ...]:
        tensors = {name: inputs[name].clone().requires_grad_() for name in ("maps", "features")}
        found = word_relation(**inputs | tensors, knobs=knobs)
        return torch.autograd.grad(found.relation.sum() + found.word_steps.sum(), list(tensors.values()))

    together = gradients(knobs)
    for row in range(12):
        alone = gradients(RelationKnobs(*(knob[row].expand(12) for knob in knobs)))
        for got, want in zip(together, alone, strict=True):
            assert got[row].isfinite().all()
            torch.testing.assert_close(got[row], want[row])


def test_words_become_tensors() -> None:
    knobs = RelationKnobs.make(2, threshold=0.5, normalise="softmax", temperature=0.25, centre=False)
    assert [knob.tolist() for knob in knobs] == [
        [1.0] * 2,
        [0.5] * 2,
        [True] * 2,
        [0.25] * 2,
        [False] * 2,
        [False] * 2,
    ]
    other = RelationKnobs.make(1, threshold_mode="absolute", variant="released", lambda_tau=2)
    assert [knob.item() for knob in other] == [2.0, pytest.approx(0.3), False, 0.0, True, True]
    assert {knob.dtype for knob in knobs} == {torch.float32, torch.bool}


def test_one_key_word_of_several_tokens_is_related_to_itself_by_one() -> None:
    inputs = relation_inputs(1, 20, 8, 6, torch.float64)
    inputs["word_of_token"] = torch.tensor([[-1, 0, 1, 1, 1, 2, 3, -1]])
    inputs["key_tokens"] = inputs["word_of_token"] == 1
    found = word_relation(**inputs, knobs=RelationKnobs.make(len(inputs["maps"])))
    torch.testing.assert_close(found.relation[0, 2:5], torch.ones(3, dtype=torch.float64))
    assert torch.equal(found.word_steps[0, 2:5], torch.zeros(3, dtype=torch.float64))


def test_without_a_key_word_every_word_is_held() -> None:
    inputs = relation_inputs(2, 20, 8, 6, torch.float32)
    inputs["key_tokens"] = torch.zeros_like(inputs["key_tokens"])
    found = word_relation(**inputs, knobs=RelationKnobs.make(len(inputs["maps"])))
    assert not found.key_embedding.any() and not found.relation.any()
    held = found.word_steps[inputs["word_of_token"] >= 0]
    torch.testing.assert_close(held, torch.full_like(held, float(1 - np.exp(-1))))
    torch.testing.assert_close(found.default_steps, torch.full((2,), 0.8))
    released = word_relation(**inputs, knobs=RelationKnobs.make(2, variant="released"))
    assert (released.word_steps[inputs["word_of_token"] >= 0] == 1).all()


RELATION: dict[str, tuple[dict[str, Any], str]] = {
    "words": (
        {"word_of_token": torch.zeros(2, 6).long()},
        r"word_of_token has shape \[2, 6\], wanted \[B, N\]",
    ),
    "keys": ({"key_tokens": torch.zeros(2, 7)}, "key_tokens is float32, wanted bool"),
    "pixels": (
        {"features": torch.zeros(2, 8, 5)},
        r"features has shape \[2, 8, 5\], wanted .* = \[2, 9, any\]",
    ),
    "a knob a token": (
        {"knobs": RelationKnobs.make(2)._replace(lambda_tau=torch.ones(2, 7))},
        r"lambda_tau has shape \[2, 7\], wanted \[B\] = \[2\]",
    ),
    "a switch that is a number": (
        {"knobs": RelationKnobs.make(2)._replace(centre=torch.ones(2))},
        "centre is float32, wanted bool",
    ),
    "another device": (
        {"knobs": RelationKnobs.make(2, device="meta")},
        "lambda_tau is on meta, maps on cpu; move them",
    ),
    "empty": ({"features": torch.zeros(2, 9, 0)}, "hold nothing"),
}


@pytest.mark.parametrize(("changes", "message"), RELATION.values(), ids=RELATION.keys())
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = relation_inputs(2, 9, 7, 5, torch.float32)
    with pytest.raises(AdapEditError, match="word_relation: .*" + message):
        word_relation(**({"knobs": RelationKnobs.make(2)} | arguments | changes))


WORDS: list[tuple[dict[str, Any], str]] = [
    ({"threshold": 1.5}, "threshold is 1.5, wanted 0 to 1"),
    ({"temperature": 0.0}, "temperature is 0.0, wanted more than 0"),
    ({"variant": "code"}, "variant is 'code', wanted one of 'paper', 'released'"),
    ({"normalise": "max"}, "normalise is 'max', wanted one of 'sum', 'softmax'"),
    ({"threshold_mode": "of all"}, "threshold_mode is 'of all', wanted one of 'absolute', 'relative'"),
]


@pytest.mark.parametrize(("words", "message"), WORDS)
def test_words_that_are_none_are_refused(words: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapEditError, match="word_relation: " + message):
        RelationKnobs.make(2, **words)
