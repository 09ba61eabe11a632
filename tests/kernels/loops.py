"""The four operations as plain loops over float64 numbers, written from the specification alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    powers = [math.exp(value - top) for value in values]
    return [power / sum(powers) for power in powers]


def attention_map(query: Array, key: Array, scale: float) -> list[float]:
    """One pixel of one head: probabilities over the tokens."""
    return softmax([scale * sum(q * k for q, k in zip(query, token, strict=True)) for token in key])


def edited_attention(
    query: Array,
    key: Array,
    value: Array,
    edited_row: Any,
    source_row: Any,
    token_map: Array,
    own_weight: Array,
    spatial_weight: Array,
    spatial_map: Array | None = None,
    *,
    scale: float,
) -> tuple[Array, Array]:
    """Output [B, H, P, D] and own maps averaged over heads [B, P, N]: probabilities are formed and edited."""
    batch, heads, pixels, width = query.shape
    tokens = key.shape[2]
    out = np.zeros((batch, heads, pixels, width))
    maps = np.zeros((batch, pixels, tokens))
    entries = {int(row): entry for entry, row in enumerate(edited_row)}
    for b in range(batch):
        e = entries.get(b)
        source = b if e is None else int(source_row[e])
        for h in range(heads):
            for p in range(pixels):
                own = attention_map(query[b, h, p], key[b, h], scale)
                blended = list(own)
                if e is not None and source != b:
                    other = attention_map(query[source, h, p], key[source, h], scale)
                    place = 1.0 if spatial_map is None else spatial_map[e, p]
                    for j in range(tokens):
                        remapped = sum(other[i] * token_map[e, i, j] for i in range(tokens))
                        weight = own_weight[e, j] + spatial_weight[e, j] * place
                        blended[j] = remapped + weight * (own[j] - remapped)
                for j in range(tokens):
                    maps[b, p, j] += own[j] / heads
                    out[b, h, p] += blended[j] * value[b, h, j]
    return out, maps


def _unit(vector: Array) -> Array:
    length = math.sqrt(sum(x * x for x in vector))
    return vector / length if length > 0 else vector * 0


def _mean_over_pixels(features: Array) -> Array:
    total = np.zeros(features.shape[1])
    for pixel in features:
        total += pixel
    return total / len(features)


def word_relation(
    maps: Array,
    features: Array,
    key_tokens: Any,
    word_of_token: Any,
    lambda_tau: float,
    threshold: float,
    relative: bool,
    temperature: float,
    centre: bool,
    released: bool,
) -> tuple[Array, Array, Array, float]:
    """One edit: relation [N], steps [N], key embedding [V], default steps."""
    pixels, tokens = maps.shape
    if centre:
        features = features - _mean_over_pixels(features)
    embeddings = []
    for j in range(tokens):
        column = [float(maps[p, j]) for p in range(pixels)]
        limit = threshold * max(column) if relative else threshold
        column = [x if x >= limit else 0.0 for x in column]
        if sum(column) == 0:
            weights = column
        elif temperature == 0:
            weights = [x / sum(column) for x in column]
        else:
            weights = softmax([x / temperature for x in column])
        embedding = np.zeros(features.shape[1])
        for p in range(pixels):
            embedding += weights[p] * features[p]
        embeddings.append(_unit(embedding))

    key = np.zeros(features.shape[1])
    for j in range(tokens):
        if key_tokens[j]:
            key += embeddings[j]
    key = _unit(key)

    relation, steps, counted = np.zeros(tokens), np.zeros(tokens), {}
    for j in range(tokens):
        word = int(word_of_token[j])
        members = [i for i in range(tokens) if i == j or (word >= 0 and int(word_of_token[i]) == word)]
        relation[j] = float(_unit(sum(embeddings[i] for i in members)) @ key)  # type: ignore[arg-type]
        if released:
            steps[j] = lambda_tau * (math.exp(1 - relation[j]) - 1)
        else:
            steps[j] = lambda_tau * (1 - math.exp(relation[j] - 1))
        steps[j] = min(max(steps[j], 0.0), 1.0)
        if any(key_tokens[i] for i in members):
            steps[j] = 0.0
        elif word >= 0:
            counted[word] = steps[j] < 0.1
    early = sum(counted.values()) / len(counted) if counted else 0.0
    default = max(0.0, 0.8 - early)
    for j in range(tokens):
        if word_of_token[j] < 0 and not key_tokens[j]:
            steps[j] = default
    return relation, steps, key, default


def spatial_similarity(features: Array, key: Array, lambda_spatial: float, centre: bool) -> Array:
    """One edit: S [P]."""
    if centre:
        features = features - _mean_over_pixels(features)
    result = np.zeros(len(features))
    for p, pixel in enumerate(features):
        result[p] = lambda_spatial * min(max(float(_unit(pixel) @ _unit(key)), 0.0), 1.0)
    return result


def guided_step(
    noise_pred: Array,
    latents: Array,
    guidance_rows: Any,
    guidance_weights: Array,
    sample_weight: Array,
    output_weight: Array,
    noise: Array | None,
    noise_weight: Array | None,
    blend_mask: Array | None,
    blend_source: Any | None,
) -> Array:
    guidance = guidance_rows.shape[1]
    stepped = np.zeros(latents.shape)
    for place in np.ndindex(*latents.shape):
        k, rest = place[0], place[1:]
        eps = 0.0
        for g in range(guidance):
            row = noise_pred[int(guidance_rows[k, g])]
            eps += guidance_weights[k, g] * row[rest]
        stepped[place] = sample_weight[k] * latents[place] + output_weight[k] * eps
        if noise is not None and noise_weight is not None:
            stepped[place] += noise_weight[k] * noise[place]
    if blend_mask is None or blend_source is None:
        return stepped
    blended = np.zeros(latents.shape)
    for k, c, y, x in np.ndindex(*latents.shape):
        source = stepped[int(blend_source[k]), c, y, x]
        blended[k, c, y, x] = source + blend_mask[k, 0, y, x] * (stepped[k, c, y, x] - source)
    return blended
