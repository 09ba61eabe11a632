"""Tokenizers of CLIP's kind: a small one, its merges learned from a few sentences, and CLIP's own, fetched."""

from __future__ import annotations

import gzip
import os
import zipfile
from collections import Counter
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

SENTENCES = (
    "a red dog standing on the grass a dog sitting on the grass a small red dog a cat jumping in the snow",
    "a photo of a cat riding on a bicycle a photo of a house on a mountain a cat sitting next to a mirror",
    "the quick brown fox jumps over the lazy dog a glass of milk a bowl of soup two dogs walking in the park",
)
MERGES = 120  # enough for the common words to be one token, few enough for the others to be several


@lru_cache
def small_clip_tokenizer(
    max_length: int = 77,
    pad_token: str = "<|endoftext|>",
    *,
    all_bytes: bool = False,
    more_merges: tuple[tuple[str, str], ...] = (),
) -> CLIPTokenizer:
    """A :class:`CLIPTokenizer` that knows all of ASCII, or of Unicode, and takes ``max_length`` tokens."""
    letters = [chr(code) for code in range(33, 127)]
    if all_bytes:
        letters = sorted(ByteLevel.alphabet())
    merges = _learn_merges(" ".join(SENTENCES).split()) + list(more_merges)
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    tokens += [pad_token] if pad_token not in tokens else []
    return CLIPTokenizer(
        vocab={token: place for place, token in enumerate(tokens)},
        merges=merges,
        pad_token=pad_token,
        model_max_length=max_length,
    )


WHEEL = Path(__file__).parents[2] / "out" / "clip_anytorch-2.6.0-py3-none-any.whl"
"""Fetched by `make test`, and not installed: CLIP's vocabulary is a file in it."""
MERGES_OF_CLIP = 49152 - 256 - 2


@lru_cache
def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's own. Where it was not fetched the test is skipped, but fails in continuous integration (`CI`)."""
    if not WHEEL.is_file():
        missing = f"{WHEEL} is not there: `make test` fetches it"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    with zipfile.ZipFile(WHEEL) as wheel:
        lines = gzip.decompress(wheel.read("clip/bpe_simple_vocab_16e6.txt.gz")).decode().split("\n")
    merges = [(one, other) for one, other in map(str.split, lines[1 : MERGES_OF_CLIP + 1])]
    # Bytes in the order of their letters: those that can be seen stand for themselves, the others follow.
    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256))]
    letters += [chr(256 + place) for place in range(256 - len(letters))]
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: place for place, token in enumerate(tokens)},
        merges=merges,
        pad_token="<|endoftext|>",
        model_max_length=77,
    )


def _learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair encoding: join the commonest pair of neighbours, again and again."""
    pieces = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    counts = Counter(words)
    merges: list[tuple[str, str]] = []
    while len(merges) < MERGES:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in pieces.items():
            for pair in pairwise(parts):
                pairs[pair] += counts[word]
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for parts in pieces.values():
            for place in range(len(parts) - 2, -1, -1):
                if tuple(parts[place : place + 2]) == best:
                    parts[place : place + 2] = ["".join(best)]
    return merges
