"""The built-in model's tokenizer and text encoder: CLIP's classes, the scene world's words."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

MAX_TOKENS = 24
"""Start, up to 22 words, end: the longest caption of two figures has 18."""

START, END = "<|startoftext|>", "<|endoftext|>"
HIDDEN_SIZE = 128


def _pieces(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding of one word with the merges so far, the lowest rank first."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    while len(pieces) > 1:
        rank, place = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(pairwise(pieces)))
        if rank == len(ranks):
            break
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
    return pieces


def make_tokenizer(words: Iterable[str]) -> CLIPTokenizer:
    """A CLIP tokenizer to which each of `words` is one token.

    Merges are added word by word, each joining what the earlier ones leave of it; later merges rank lower, so
    they never break an earlier word. The vocabulary also holds pieces of words; no known text ever shows one.
    """
    vocabulary: dict[str, int] = {}
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        for letter in (*word[:-1], word[-1] + "</w>"):
            vocabulary.setdefault(letter, len(vocabulary))
        left, *rest = _pieces(word, ranks)
        for right in rest:
            ranks[left, right] = len(ranks)
            left += right
            vocabulary.setdefault(left, len(vocabulary))
    for special in (START, END):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(
        vocab=vocabulary, merges=list(ranks), unk_token=END, bos_token=START, eos_token=END, pad_token=END,
        model_max_length=MAX_TOKENS,
    )  # fmt: skip


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained text encoder: 3 causal layers of 128, a 24-token window."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN_SIZE,
            intermediate_size=4 * HIDDEN_SIZE,
            projection_dim=HIDDEN_SIZE,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
