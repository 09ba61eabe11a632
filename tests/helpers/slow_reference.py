"""FWT, DPS and the edited map once more: plain loops over float64 numbers, written from the description alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

Matrix = list[list[float]]


def unit(vector: Sequence[float]) -> list[float]:
    length = math.sqrt(sum(value * value for value in vector))
    return [value / length if length > 0 else 0.0 for value in vector]


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(unit(one), unit(other), strict=True))


def centred(features: Matrix) -> Matrix:
    means = [sum(column) / len(features) for column in zip(*features, strict=True)]
    return [[value - mean for value, mean in zip(pixel, means, strict=True)] for pixel in features]


def token_weights(
    column: Sequence[float], alpha: float, relative: bool, softmax: bool, temperature: float
) -> list[float]:
    """Steps 1 and 2: what is below alpha becomes 0, and the column sums to 1."""
    limit = alpha * max(column) if relative else alpha
    kept = [value if value >= limit else 0.0 for value in column]
    if sum(kept) == 0:
        return kept
    if softmax:
        kept = [math.exp((value - max(kept)) / temperature) for value in kept]
    return [value / sum(kept) for value in kept]


class FlexibleWordTiming:
    """Steps 1 to 6 of FWT for averaged maps [P][N] and features [P][C]; words: the tokens of each word."""

    def __init__(
        self,
        maps: Matrix,
        features: Matrix,
        words: Sequence[Sequence[int]],
        key_words: Sequence[int],
        *,
        lambda_tau: float = 1.0,
        alpha: float = 0.3,
        relative: bool = True,
        softmax: bool = False,
        temperature: float = 0.01,
        centre: bool = True,
        released: bool = False,
    ) -> None:
        features = centred(features) if centre else features
        embeddings = []
        for column in zip(*maps, strict=True):
            weights = token_weights(column, alpha, relative, softmax, temperature)
            embedding = [
                sum(weight * value for weight, value in zip(weights, channel, strict=True))
                for channel in zip(*features, strict=True)
            ]
            embeddings.append(unit(embedding))
        keys = [embeddings[token] for word in key_words for token in words[word]]
        self.key_embedding = unit([sum(values) for values in zip(*keys, strict=True)])
        self.relation: list[float] = []
        self.word_steps: list[float] = []
        for number, tokens in enumerate(words):
            together = [sum(values) for values in zip(*(embeddings[token] for token in tokens), strict=True)]
            relation = cosine(together, self.key_embedding)
            held = math.exp(1 - relation) - 1 if released else 1 - math.exp(relation - 1)
            self.relation.append(relation)
            self.word_steps.append(0.0 if number in key_words else min(1.0, max(0.0, lambda_tau * held)))
        kept = [steps for number, steps in enumerate(self.word_steps) if number not in key_words]
        early = sum(steps < 0.1 for steps in kept) / len(kept) if kept else 0.0
        self.default_steps = max(0.0, 0.8 - early)


def spatial_map(
    features: Matrix, key_embedding: Sequence[float], lambda_spatial: float, *, centre: bool
) -> list[float]:
    """Eq. 9."""
    features = centred(features) if centre else features
    return [lambda_spatial * min(1.0, max(0.0, cosine(pixel, key_embedding))) for pixel in features]


def edited_map(
    source: Matrix,
    target: Matrix,
    token_map: Matrix,
    inserted: Sequence[bool],
    word_steps: Sequence[float],
    spatial: Sequence[float],
    *,
    lambda_s: float,
    step: int,
    steps: int,
) -> Matrix:
    """Eq. 4 and 8: maps [P][N] of the source and of the target to those that the target gets at a step."""
    result = []
    for pixel, (of_source, of_target) in enumerate(zip(source, target, strict=True)):
        row = []
        for token, own in enumerate(of_target):
            remapped = sum(value * token_map[i][token] for i, value in enumerate(of_source))
            weight = spatial[pixel]
            blended = lambda_s * (weight * own + (1 - weight) * remapped) + (1 - lambda_s) * remapped
            if inserted[token]:
                row.append(own)
            elif step < math.floor(word_steps[token] * steps + 1e-4):
                row.append(remapped)
            else:
                row.append(blended)
        result.append(row)
    return result
