"""Two hundred pairs of real prompts by CLIP's own tokenizer: what became of each word, and whose tokens are whose.

In tests/data/pairs.txt `{old|new}` says what differs: that is the alignment that is right.
"""

from __future__ import annotations

import json
import re
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from adapedit.prompts.alignment import Alignment, align
from adapedit.prompts.matching import word_class
from adapedit.prompts.tokens import word_spans
from tests.helpers.tokenizers import clip_tokenizer

DATA = Path(__file__).parents[2] / "data"
MARK = re.compile(r"\{([^|{}]*)\|([^|{}]*)\}")


class Pair(NamedTuple):
    """Prompts, and what is replaced, inserted and deleted between them."""

    source: str
    target: str
    replaced: list[tuple[str, str]]
    inserted: list[str]
    deleted: list[str]


def words(text: str) -> list[str]:
    return [text[start:stop] for start, stop in word_spans(text)]


def marked(line: str) -> Pair:
    """Of a line with `{old|new}` in it."""
    source, target = (re.sub(r" +", " ", MARK.sub(side, line)).strip() for side in (r"\1", r"\2"))
    changes = [(words(old), words(new)) for old, new in MARK.findall(line)]
    replaced = [pair for old, new in changes if old and new for pair in zip(old, new, strict=True)]
    inserted = [word for old, new in changes if not old for word in new]
    deleted = [word for old, new in changes if not new for word in old]
    return Pair(source, target, replaced, inserted, deleted)


def given(line: str) -> Pair:
    """Of a line of JSON, in which a word may say which one it is: "kite (second)"."""
    case: dict[str, Any] = json.loads(re.sub(r" \((?:first|second|third|last)\)", "", line))
    replaced = [(old, new) for old, new in case["replaced"]]
    return Pair(case["source"], case["target"], replaced, case["inserted"], case["deleted"])


def lines(name: str) -> list[str]:
    return (DATA / name).read_text(encoding="utf-8").splitlines()


PAIRS = list(
    {
        pair[:2]: pair for pair in (*map(given, lines("prompts.jsonl")), *map(marked, lines("pairs.txt")))
    }.values()
)


def aligned(pair: Pair) -> Alignment:
    return align(pair.source, pair.target, clip_tokenizer())


def test_there_are_two_hundred_and_it_is_clips_own_tokenizer():
    assert len(PAIRS) >= 200
    assert clip_tokenizer()("a photo of a cat")["input_ids"] == [49406, 320, 1125, 539, 320, 2368, 49407]


@pytest.mark.parametrize("pair", PAIRS, ids=[f"{pair.source} - {pair.target}" for pair in PAIRS])
def test_every_word_is_what_became_of_it(pair: Pair):
    found = aligned(pair)
    replaced = [
        (found.source_words[word.counterpart].text, word.text)
        for word in found.target_words
        if word.kind == "replaced" and word.counterpart is not None
    ]
    assert replaced == pair.replaced
    assert shown([word.text for word in found.target_words if word.kind == "inserted"]) == shown(
        pair.inserted
    )
    assert shown([word.text for word in found.deleted_words]) == shown(pair.deleted)


def shown(texts: list[str]) -> list[str]:
    """Without punctuation, which not all cases name."""
    return [text for text in texts if word_class(text) != "punctuation"]


def plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).lower().replace(" ", "")


def test_the_tokens_of_a_word_read_as_it_does_and_every_token_is_of_one_word():
    tokenizer, long = clip_tokenizer(), 0
    for pair in PAIRS:
        found = aligned(pair)
        for own, ids in (
            (found.source_words, found.source_input_ids),
            (found.target_words, found.target_input_ids),
        ):
            places = [place for word in own for place in word.tokens]
            assert places == list(range(1, len(places) + 1))
            assert ids[len(places) + 1 :].eq(tokenizer.eos_token_id).all()
            for word in own:
                assert plain(tokenizer.decode(ids[list(word.tokens)])) == plain(word.text), pair
            long += sum(len(word.tokens) > 2 for word in own)
    assert long > 100


def test_the_map_takes_each_kept_token_from_its_own_and_shares_the_others():
    for pair in PAIRS:
        found = aligned(pair)
        assert found.token_map.sum(1).allclose(found.token_map.new_ones(()))
        for word in found.target_words:
            if word.counterpart is None:
                assert not found.token_map[:, list(word.tokens)].any()
                continue
            old = found.source_words[word.counterpart].tokens
            block = found.token_map[list(old)][:, list(word.tokens)]
            assert block.sum() == pytest.approx(len(old))
            if len(old) == len(word.tokens):
                assert block.diag().eq(1).all()
        kept = [word.counterpart for word in found.target_words if word.counterpart is not None]
        assert all(one < other for one, other in pairwise(kept))
