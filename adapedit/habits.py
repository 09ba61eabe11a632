"""What people do to a pipeline of diffusers that they hold: the same here, or a line that says how it is done here."""

from __future__ import annotations

from typing import Any

import torch

from adapedit.configs import ModelError
from adapedit.loading import usable_device
from adapedit.model import EditModel
from adapedit_kernels.errors import AdapEditError

_MEMORY = "torch_dtype=torch.float16, and edit_batch(requests, max_rows=4)"
_MERGED = "from_pipe(pipe) with a diffusers pipeline into which it was loaded"
REFUSED = {
    **dict.fromkeys(("enable_model_cpu_offload", "enable_sequential_cpu_offload"), _MEMORY),
    **dict.fromkeys(("enable_attention_slicing", "enable_xformers_memory_efficient_attention"), _MEMORY),
    **dict.fromkeys(("enable_group_offload", "enable_layerwise_casting"), _MEMORY),
    **dict.fromkeys(("load_lora_weights", "fuse_lora", "load_textual_inversion", "enable_freeu"), _MERGED),
    **dict.fromkeys(("load_ip_adapter", "set_ip_adapter_scale"), "image=, a picture to edit"),
    "save_pretrained": "that of a diffusers pipeline, StableDiffusionPipeline(**pipe.components)",
    "from_config": "from_pretrained, from_single_file or from_pipe",
    **dict.fromkeys(("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer"), "components[name]"),
}
"""Names of diffusers' pipelines, and what to use instead."""


class HabitError(AdapEditError, AttributeError):
    """What diffusers' pipelines have and this one has not."""


class Habits:
    """Of a pipeline, which has a model."""

    model: EditModel

    @property
    def device(self) -> torch.device:
        """Where edits are computed."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the UNet."""
        return self.model.runner.dtype

    @property
    def components(self) -> dict[str, Any]:
        """The parts by diffusers' names, which another pipeline may share: `StableDiffusionPipeline(**components)`."""
        return self.model.components

    def to(self, *given: Any, device: Any = None, dtype: torch.dtype | None = None) -> Any:
        """This pipeline, its modules moved in place: `to("cuda")`, `to(torch.float16)`, `to("cuda", torch.float16)`.

        Whoever shares the modules has them there, too. Raises `ModelError` for a device that can't be used, and for a
        bundle, whose device and precision were chosen before.
        """
        for one in given:
            if isinstance(one, torch.dtype):
                dtype = one
            else:
                device = one
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ModelError(
                f"dtype is {dtype!r}, wanted a floating one of PyTorch, for example torch.float16"
            )
        parts = self.components
        on = None if device is None else usable_device(device)
        for name, part in parts.items():
            if isinstance(part, torch.nn.Module):
                wide = name == "vae" and self.model.wide_vae and dtype == torch.float16
                part.to(device=on, dtype=torch.float32 if wide else dtype)
        return self

    def enable_vae_tiling(self) -> None:
        """Decode and encode in tiles, which takes less memory, and shows where they meet in large pictures."""
        self.components["vae"].enable_tiling()

    def disable_vae_tiling(self) -> None:
        """In one piece, as at first."""
        self.components["vae"].disable_tiling()

    def enable_vae_slicing(self) -> None:
        """Pictures are decoded one at a time in any case: nothing changes."""

    def disable_vae_slicing(self) -> None:
        """Pictures are decoded one at a time in any case: nothing changes."""

    def __getattr__(self, name: str) -> Any:
        if name in REFUSED:
            raise HabitError(f"{name} is not supported, use {REFUSED[name]}")
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
