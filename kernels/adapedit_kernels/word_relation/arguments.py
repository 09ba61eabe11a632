"""What the word relation takes, checked before anything is computed or launched."""

from __future__ import annotations

import torch
from torch import Tensor

from adapedit_kernels.checks import check_dtype, check_same_device, check_shape
from adapedit_kernels.errors import AdapEditError

__all__ = ["MAX_TOKENS", "check_arguments"]

MAX_TOKENS = 128

_NAME = "word_relation"
_HALF_AND_SINGLE = (torch.float32, torch.float16, torch.bfloat16)
_FLOATING = (*_HALF_AND_SINGLE, torch.float64)


def check_arguments(
    maps: Tensor,
    features: Tensor,
    key_tokens: Tensor,
    word_of_token: Tensor,
    lambda_tau: Tensor,
    *,
    chosen: str,
) -> None:
    """Raise AdapEditError unless the arguments fit together and the chosen implementation takes them."""
    check_shape(_NAME, "maps", maps, (None, None, None), "[B, P, N]")
    batch, pixels, tokens = maps.shape
    check_shape(_NAME, "features", features, (batch, pixels, None), "[B, P, V]")
    check_shape(_NAME, "key_tokens", key_tokens, (batch, tokens), "[B, N]")
    check_shape(_NAME, "word_of_token", word_of_token, (batch, tokens), "[B, N]")
    check_shape(_NAME, "lambda_tau", lambda_tau, (batch,), "[B]")
    if 0 in (batch, pixels, tokens, features.shape[2]):
        raise AdapEditError(
            f"{_NAME}: maps {list(maps.shape)} and features {list(features.shape)} hold nothing"
        )
    floating = _HALF_AND_SINGLE if chosen == "triton" else _FLOATING
    check_dtype(_NAME, "maps", maps, floating)
    check_dtype(_NAME, "features", features, floating)
    check_dtype(_NAME, "lambda_tau", lambda_tau, floating)
    check_dtype(_NAME, "key_tokens", key_tokens, (torch.bool,))
    check_dtype(_NAME, "word_of_token", word_of_token, (torch.int64,))
    named = {"maps": maps, "features": features, "key_tokens": key_tokens, "word_of_token": word_of_token}
    check_same_device(_NAME, named | {"lambda_tau": lambda_tau})
    if chosen == "triton" and tokens > MAX_TOKENS:
        raise AdapEditError(
            f"{_NAME}: {tokens} tokens, the kernel takes 1 to {MAX_TOKENS}; name implementation='reference'"
        )
