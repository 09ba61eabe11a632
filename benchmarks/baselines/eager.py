"""The eager way of Prompt-to-Prompt and of AdapEdit's authors, written anew for current diffusers.

Every attention layer forms its probabilities, writes them to memory and calls a controller, which stores them and
gives back edited ones. The controller finds out where it is by counting calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

STORED_PIXELS = 32 * 32


class Controller:
    """Stores maps and edits those of the second of two prompts. Rows: two unconditional, then source and target.

    token_map [N, N], own_weight [N]: as in the engine. word_steps [N]; self_steps: shares of the steps.
    self_pixels: of the largest self-attention that is edited. prompts: 1 stores and edits nothing.
    """

    def __init__(
        self,
        layers: int,
        steps: int,
        token_map: Tensor,
        own_weight: Tensor,
        word_steps: Tensor,
        self_steps: float,
        self_pixels: int,
        prompts: int = 2,
    ) -> None:
        self.prompts = prompts
        self.layers, self.steps = layers, steps
        self.token_map, self.own_weight, self.word_steps = token_map, own_weight, word_steps
        self.self_steps, self.self_pixels = self_steps, self_pixels
        self.calls = self.step = 0
        self.now: list[Tensor] = []
        self.total: list[Tensor] = []

    def __call__(self, probs: Tensor, cross: bool) -> Tensor:
        """probs [rows * heads, P, N] in, edited ones out."""
        half = probs.shape[0] // 2
        conditional = probs[half:]
        if cross and probs.shape[1] <= STORED_PIXELS:
            self.now.append(conditional.clone())
        if self.prompts == 2:
            edited = self._edit(conditional.reshape(2, half // 2, *probs.shape[1:]), cross)
            probs = torch.cat([probs[:half], edited.reshape(half, *probs.shape[1:])])
        self.calls += 1
        if self.calls == self.layers:
            self.calls = 0
            self._end_step()
        return probs

    def _edit(self, probs: Tensor, cross: bool) -> Tensor:
        source, target = probs
        if not cross:
            early = self.step < self.self_steps * self.steps and probs.shape[2] <= self.self_pixels
            return torch.stack([source, source if early else target])
        replaced = torch.einsum("hpn,nm->hpm", source, self.token_map)
        held = (self.step < self.word_steps * self.steps).to(probs.dtype) * (1 - self.own_weight)
        return torch.stack([source, held * replaced + (1 - held) * target])

    def _end_step(self) -> None:
        if self.total:
            for total, now in zip(self.total, self.now, strict=True):
                total += now
        else:
            self.total = self.now
        self.now = []
        self.step += 1


class EagerProcessor:
    """Attention by explicit probabilities that pass through the controller."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        cross = encoder_hidden_states is not None
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(context))
        value = attn.head_to_batch_dim(attn.to_v(context))
        probs = self.controller(attn.get_attention_scores(query, key, attention_mask), cross)
        out = attn.batch_to_head_dim(torch.bmm(probs, value))
        return attn.to_out[1](attn.to_out[0](out))


@contextmanager
def controlled(unet: Any, controller: Controller) -> Iterator[None]:
    """The UNet with eager processors for the length of a block."""
    before = dict(unet.attn_processors)
    unet.set_attn_processor(EagerProcessor(controller))
    try:
        yield
    finally:
        unet.set_attn_processor(before)
