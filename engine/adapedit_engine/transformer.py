"""A transformer of Stable Diffusion's UNet without what its general form costs on the CPU.

diffusers asks for signatures, masks and kinds of norms at every call of every layer, makes a new tensor for each sum,
and leaves its result in another memory format than the convolutions around it want, so that both sides copy. None of
that is needed for the one kind of block that Stable Diffusion has. The numbers are the same, bit for bit where the
projections are convolutions (1.x); behind linear ones (2.x) the other memory format makes norms round otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from adapedit_engine.processors import AttentionCall, CrossAttentionProcessor, SelfAttentionProcessor


def is_lean(transformer: Transformer2DModel) -> bool:
    """Whether a transformer is one of pictures, of blocks with both attentions and a feed-forward layer alone."""
    return transformer.is_input_continuous and all(
        type(block) is BasicTransformerBlock
        and block.norm_type == "layer_norm"
        and block.pos_embed is None
        and block.attn2 is not None
        and not block.only_cross_attention
        and not hasattr(block, "fuser")
        for block in transformer.transformer_blocks
    )


def leanly(transformer: Transformer2DModel) -> Callable[..., Any]:
    """What such a transformer computes of [B, C, h, w] without gradients, in the same shape, channels last.

    As diffusers does where it is asked for more than our attention processors, or somebody listens with hooks.
    """
    plain, linear = transformer.forward, transformer.use_linear_projection

    def compute(
        input: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        return_dict: bool = True,
        **others: Any,
    ) -> Any:
        given = cross_attention_kwargs or {}
        call = given.get("call")
        usual = not return_dict and len(given) == 1 and isinstance(call, AttentionCall)
        if not usual or any(value is not None for value in others.values()) or not _as_expected(transformer):
            named = {"cross_attention_kwargs": cross_attention_kwargs, "return_dict": return_dict, **others}
            return plain(input, encoder_hidden_states, **named)
        rows, _, height, width = input.shape
        hidden = transformer.norm(input)
        if not linear:
            hidden = transformer.proj_in(hidden)
        hidden = hidden.permute(0, 2, 3, 1).reshape(rows, height * width, -1)
        if linear:
            hidden = transformer.proj_in(hidden)
        for block in _blocks(transformer):
            # The sums go into what the block was given: it is nobody else's.
            for norm, attn in ((block.norm1, block.attn1), (block.norm2, block.attn2)):
                text = None if attn is block.attn1 else encoder_hidden_states
                hidden.add_(attn.processor(attn, norm(hidden), text, call=call))
            hidden.add_(block.ff(block.norm3(hidden)))
        if linear:
            hidden = transformer.proj_out(hidden)
        hidden = hidden.view(rows, height, width, -1).permute(0, 3, 1, 2)
        if not linear:
            hidden = transformer.proj_out(hidden)
        return (hidden.add_(input),)

    return compute


def _blocks(transformer: Transformer2DModel) -> Iterator[Any]:
    return iter(cast(Any, transformer.transformer_blocks))


def _as_expected(transformer: Transformer2DModel) -> bool:
    """Whether nothing was hung into the blocks since: other processors, hooks, chunks."""
    return all(
        type(block.attn1.processor) is SelfAttentionProcessor
        and type(block.attn2.processor) is CrossAttentionProcessor
        and block._chunk_size is None
        and not any(_listened(each) for each in (block, block.attn1, block.attn2))
        for block in _blocks(transformer)
    )


def _listened(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
