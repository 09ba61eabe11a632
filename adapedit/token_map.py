"""The token map ``A``: how the source's attention is put on the target's tokens, ``R = M^c A``.

Each row of ``A`` sums to 1, so each pixel of ``R`` is a distribution over tokens, as the softmax was that it
comes from:

* a word with as many tokens as its counterpart: one to one;
* with another number of them: each source token's attention is shared evenly, as in Prompt-to-Prompt;
* a deleted word's attention goes to the start token, where a softmax puts attention that has nowhere to go
  (a causal text encoder makes the same of that token in every prompt);
* end and padding: place by place from the end token on. Where the target has more padding the source's last
  is shared among the rest; where it has less, what is left over is added to the target's last.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adapedit.matching import Pair
from adapedit.words import TokenizedPrompt

__all__ = ["make_token_map"]


def make_token_map(source: TokenizedPrompt, target: TokenizedPrompt, pairs: Sequence[Pair]) -> Tensor:
    """[N, N] float32: weight of source token i in target token j, both prompts being N tokens long.

    pairs: as :func:`adapedit.matching.match_words` gives them. Columns of inserted words are 0.
    """
    tokens = len(source.input_ids)
    result = torch.zeros(tokens, tokens)
    result[0, 0] = 1.0
    for old, new in pairs:
        if old is None:
            continue
        if new is None:
            result[list(source.positions[old]), 0] = 1.0
        else:
            _connect(result, source.positions[old], target.positions[new])
    _connect_tails(result, range(source.end, tokens), range(target.end, tokens))
    return result


def _connect(result: Tensor, old: Sequence[int], new: Sequence[int]) -> None:
    if len(old) == len(new):
        result[list(old), list(new)] = 1.0
    else:
        for place in old:
            result[place, list(new)] = 1.0 / len(new)


def _connect_tails(result: Tensor, old: Sequence[int], new: Sequence[int]) -> None:
    common = min(len(old), len(new)) - 1  # the last place of the shorter one takes what is left of the other
    for place in range(common):
        result[old[place], new[place]] = 1.0
    for place in old[common:]:
        result[place, list(new[common:])] = 1.0 / len(new[common:])
