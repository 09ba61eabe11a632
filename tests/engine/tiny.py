"""A random UNet that runs in milliseconds, and plans for it."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from adapedit_engine.models.unet import ControlledUNet
from adapedit_engine.plan import Adaptive, CrossEdit, EditPlan, LocalBlend
from adapedit_engine.schedule import Schedule

T = TypeVar("T")

TOKENS, TEXT, SIDE, STEPS = 6, 24, 8, 5
GUIDANCE = 3.0

TINY: dict[str, Any] = {
    "sample_size": SIDE,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": TEXT,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}


def tiny_unet(seed: int = 0, **changes: Any) -> UNet2DConditionModel:
    """Random weights, with the projections of queries and keys enlarged so that attention is far from flat."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(**{**TINY, **changes}).eval().requires_grad_(False)
    for name, parameter in unet.named_parameters():
        if name.endswith(("attn1.to_q.weight", "attn2.to_q.weight", "attn2.to_k.weight")):
            parameter.mul_(3)
    return unet


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ddim(steps: int = STEPS) -> Schedule:
    spacing = (
        "leading" if steps > 2 else "trailing"
    )  # which of so few steps ends where the model knows pictures
    return Schedule.from_scheduler(DDIMScheduler(clip_sample=False, timestep_spacing=spacing), steps)


def prompts(*seeds: int, guidance: int = 2) -> Tensor:
    """[tracks, G, N, D]: an empty prompt shared by all, then each track's own."""
    empty = noise(guidance - 1, TOKENS, TEXT, seed=99)
    return torch.stack([torch.cat([empty, noise(1, TOKENS, TEXT, seed=seed)]) for seed in seeds])


def plan(*seeds: int, latents_seed: int = 7, **changes: Any) -> EditPlan:
    """A plan of one track per prompt seed, from the same latents; by default nothing is edited."""
    tracks = len(seeds)
    fields: dict[str, Any] = {
        "schedule": changes.pop("schedule", None) or ddim(),
        "latents": noise(1, 4, SIDE, SIDE, seed=latents_seed).repeat(tracks, 1, 1, 1),
        "encoder_hidden_states": prompts(*seeds),
        "guidance_weights": torch.tensor([[1 - GUIDANCE, GUIDANCE]]).repeat(tracks, 1),
    }
    return EditPlan(**{**fields, **changes})


def cross_edit(tracks: int = 2, word_steps: float | Tensor = 0.5, **changes: Any) -> CrossEdit:
    """Tokens map one to one, the fourth has no counterpart; the first track is nobody's target."""
    own_weight = torch.zeros(tracks, TOKENS)
    own_weight[1:, 3] = 1
    fields: dict[str, Any] = {
        "token_map": torch.eye(TOKENS).repeat(tracks, 1, 1),
        "own_weight": own_weight,
        "word_steps": torch.ones(tracks, TOKENS) * word_steps,
        "strength": torch.ones(tracks),
    }
    return CrossEdit(**{**fields, **changes})


def edit_plan(*seeds: int, word_steps: float | Tensor = 0.5, cross: Any = None, **changes: Any) -> EditPlan:
    """The first track is the source of all others. cross: changes of `cross_edit`."""
    tracks = len(seeds)
    edit = cross_edit(tracks, word_steps, **(cross or {}))
    return plan(*seeds, **{"source_track": (0,) * tracks, "cross_attention": edit, **changes})


def self_interval(
    unet: UNet2DConditionModel, share: float, tracks: int = 2, steps: int = STEPS, level: int = 1
) -> Tensor:
    """[K, L, 2]: layers from `level` on, in the first `share` of the steps."""
    layers = ControlledUNet(unet).specs.self_layers
    deep = torch.tensor([layer.level >= level for layer in layers])
    stop = int(share * steps + 0.999) * deep
    return torch.stack([torch.zeros_like(stop), stop], 1).expand(tracks, -1, -1).contiguous()


def largest(one: Tensor, other: Tensor) -> float:
    """The largest difference."""
    return float((one - other).abs().max())


def there(value: T | None) -> T:
    """The value, which is not None."""
    assert value is not None
    return value


def key_tokens(tracks: int = 2) -> Tensor:
    """One token of every track but the first."""
    keys = torch.zeros(tracks, TOKENS, dtype=torch.bool)
    keys[1:, 2] = True
    return keys


def blend(tracks: int = 2, **changes: Any) -> LocalBlend:
    """Of one token of every track but the first; changes: numbers hold for all tracks."""
    fields: dict[str, Any] = {"threshold": 0.3, "start": 0.2, "grow": 1, **changes}
    fields |= {
        name: torch.full((tracks,), value) for name, value in fields.items() if not torch.is_tensor(value)
    }
    return LocalBlend(
        **{
            "token_weights": key_tokens(tracks).float(),
            "source_weights": torch.zeros(tracks, TOKENS),
            **fields,
        }
    )


def adaptive(tracks: int = 2, **changes: Any) -> Adaptive:
    """For tracks of four words, of which the third has two tokens; changes: numbers hold for all tracks."""
    words = torch.tensor([-1, 0, 1, 2, 2, -1]).repeat(tracks, 1)
    fields: dict[str, Any] = {
        "lambda_tau": 0.9,
        "threshold": 0.3,
        "relative": True,
        "temperature": 0.0,
        "centre": True,
        "released": False,
        "lambda_spatial": 1.0,
        "temporal": torch.ones(tracks, TOKENS, dtype=torch.bool),
        "spatial": True,
        "joined": False,
        "grow": 0,
        "self_layers": torch.zeros(tracks, 0, dtype=torch.bool),
        **changes,
    }
    fields |= {
        name: torch.full((tracks,), value) for name, value in fields.items() if not torch.is_tensor(value)
    }
    return Adaptive(**{"key_tokens": key_tokens(tracks), "word_of_token": words, **fields})
