"""UNets that edit by an instruction, beside the model whose pictures they edit: found, checked, loaded once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adapedit.checkpoint import ModelError, locate, read_part
from adapedit_engine.runners import Runner

if TYPE_CHECKING:
    from adapedit.model import EditModel

SCHEDULE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
"""What two schedulers have to agree on for one to denoise what is meant for the other."""


def editing_runner(checkpoint: str | None, model: EditModel) -> Runner:
    """A runner of the checkpoint's UNet, which takes the source's latents as further input channels.

    checkpoint: a folder or hub name in the layout of InstructPix2Pix. Of it the UNet is read, and the
    noise schedule compared: tokenizer, text encoder and VAE, which InstructPix2Pix does not train, are the model's.
    Kept in `model.editors`. Raises `ModelError` in one line for a UNet that does not go with the model.
    """
    if checkpoint is None:
        raise ModelError(
            f"no UNet that edits by an instruction comes with model {model.name!r}; name one made for it with the knob "
            "checkpoint (for Stable Diffusion 1.5: timbrooks/instruct-pix2pix)"
        )
    if checkpoint not in model.editors:
        model.editors[checkpoint] = _load(checkpoint, model)
    return model.editors[checkpoint]


def _load(checkpoint: str, model: EditModel) -> Runner:
    place = locate(checkpoint, components=("unet", "scheduler"))
    from diffusers import DDIMScheduler, UNet2DConditionModel

    from adapedit_engine.runners.pytorch import PyTorchRunner

    _check_schedule(checkpoint, read_part(place, "scheduler", DDIMScheduler).config, model)
    unet = read_part(place, "unet", UNet2DConditionModel, torch_dtype=model.runner.dtype)
    _check_unet(checkpoint, unet.config, model)
    unet.requires_grad_(False)
    unet.to(model.device).eval()
    static_steps = getattr(model.runner, "static_steps", None)
    return PyTorchRunner(unet, map_divisor=model.runner.specs.map_divisor, static_steps=static_steps)


def _check_schedule(checkpoint: str, config: Mapping[str, Any], model: EditModel) -> None:
    own = model.scheduler.config
    for name in SCHEDULE:
        if name in own and config.get(name) != own[name]:
            raise ModelError(
                f"checkpoint {checkpoint!r} has {name} {config.get(name)!r}, model {model.name!r} has {own[name]!r}; "
                "use one that was made from this model"
            )


def _check_unet(checkpoint: str, config: Mapping[str, Any], model: EditModel) -> None:
    specs = model.runner.specs
    wanted = {
        "in_channels": 2 * specs.out_channels,
        "out_channels": specs.out_channels,
        "cross_attention_dim": specs.text_channels,
    }
    for name, value in wanted.items():
        if config[name] != value:
            raise ModelError(
                f"the unet of checkpoint {checkpoint!r} has {name} {config[name]!r}, wanted {value} beside model "
                f"{model.name!r}: it is no InstructPix2Pix of this model"
            )
