"""Text encoders side by side: what a UNet is told of a prompt. Traced for bundles as it is run here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

HIDDEN, POOLED = "hidden_states", "text_embeds"


class TextEncoders(nn.Module):
    """CLIP text encoders: token ids of each, [B, N], to hidden states [B, N, D] and, of several, a pooled embedding.

    One gives its last hidden states (Stable Diffusion 1.x, 2.x). Of several (SDXL) each gives its last but one, joined
    along D, and the last one its projected embedding [B, E] of the whole prompt.
    """

    def __init__(self, encoders: Sequence[nn.Module]) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the ids, in order."""
        return id_names(len(self.encoders))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what is returned, in order."""
        return (HIDDEN,) if len(self.encoders) == 1 else (HIDDEN, POOLED)

    @property
    def vocabulary(self) -> int:
        """Ids that all of them know."""
        configs: list[Any] = [encoder.config for encoder in self.encoders]
        return min(int(config.vocab_size) for config in configs)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, input_ids: Tensor, input_ids_2: Tensor | None = None) -> tuple[Tensor, ...]:
        if input_ids_2 is None:
            return (self.encoders[0](input_ids).last_hidden_state,)
        outputs: list[Any] = [
            encoder(ids, output_hidden_states=True)
            for encoder, ids in zip(self.encoders, (input_ids, input_ids_2), strict=True)
        ]
        return torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), outputs[-1].text_embeds


def id_names(encoders: int) -> tuple[str, ...]:
    """Names of the ids that so many text encoders take."""
    return tuple("input_ids" if i == 0 else f"input_ids_{i + 1}" for i in range(encoders))
