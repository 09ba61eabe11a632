"""Checkpoints and bundles to models, each loaded whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adapedit.checkpoints import expanded, is_bundle, locate, read_part
from adapedit.configs import (
    SCHEDULER_FILE,
    TOKENIZER_FILE,
    Configs,
    ModelError,
    ModelFacts,
    SchedulerConfig,
    TokenizerConfig,
    read_config,
    read_configs,
    read_index,
    read_words_configs,
)
from adapedit.model import BundleModel, EditModel
from adapedit.prompts.tokens import settled
from adapedit.result import folder_path
from adapedit_engine.bundle import Bundle
from adapedit_engine.models.layers import trained_side
from adapedit_engine.models.text import TextEncoders
from adapedit_engine.runners.base import (
    BUNDLE_RUNNERS,
    CHECKPOINT_RUNNERS,
    RunnerError,
    device_of,
    open_bundle_runner,
)
from adapedit_engine.runners.pytorch import CompiledRunner, PyTorchRunner
from adapedit_engine.schedule import Schedule, follow_pipelines


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What is needed to align prompts for a model. max_tokens: N, the text encoder's own limit."""

    name: str
    tokenizer: Any
    max_tokens: int
    facts: ModelFacts


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A checkpoint's own objects. tokenizers, text_encoders: one of each other, in order. wide_vae: see `EditModel`."""

    tokenizers: tuple[Any, ...]
    text_encoders: tuple[Any, ...]
    unet: Any
    vae: Any
    scheduler: Any
    wide_vae: bool

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """All that have weights."""
        return (*self.text_encoders, self.unet, self.vae)


def load_any(
    source: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    scheduler: Any = None,
    runner: str | None = None,
) -> EditModel:
    """A bundle behind a runner (by default "onnxruntime"), or a checkpoint ("pytorch", "pytorch-compiled").

    A checkpoint behind a runner of bundles is exported once into the user's cache, see `adapedit.exports`; TensorRT's
    own runners want a bundle with plans. A runner that was named is never replaced by another one.
    """
    if is_bundle(source):
        if dtype not in (None, torch.float32):
            raise ModelError(
                f"{source} is a bundle, whose dtype was chosen when it was made; leave --dtype out"
            )
        model: EditModel = load_bundle(str(source), runner or "onnxruntime", device=device)
        return model if scheduler is None else model.with_scheduler(scheduler)
    if runner is None or runner in CHECKPOINT_RUNNERS:
        return load_model(source, device=device, dtype=dtype, scheduler=scheduler, runner=runner or "pytorch")
    if runner not in BUNDLE_RUNNERS:
        known = ", ".join((*CHECKPOINT_RUNNERS, *BUNDLE_RUNNERS))
        raise RunnerError(f"there is no runner {runner!r}; use one of: {known}")
    if BUNDLE_RUNNERS[runner] == "tensorrt":
        commands = f"adapedit export {source or 'builtin'} --out BUNDLE, then adapedit build BUNDLE"
        raise RunnerError(f"runner {runner!r} wants a bundle with plans; make one: {commands}")
    device_of(runner, device)
    from adapedit.exports import cached_bundle

    model = load_bundle(cached_bundle(source, dtype), runner, device=device)
    return model if scheduler is None else model.with_scheduler(scheduler)


def load_model(
    source: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    scheduler: Any = None,
    runner: str = "pytorch",
) -> EditModel:
    """Load the built-in model (None or "builtin"), a diffusers folder, or a hub name that the user gives.

    Weights are read from safetensors files only; configurations and files are checked before anything is built. Raises
    `ModelError` with the mend in one line.
    """
    dtype = torch.float32 if dtype is None else dtype
    if not isinstance(dtype, torch.dtype):
        raise ModelError(f"dtype is {dtype!r}, wanted one of PyTorch, for example torch.float16")
    name, folder = locate(source)
    configs = read_configs(folder)
    facts = ModelFacts.read(folder, **configs.index.usual_facts)
    on = usable_device(device)
    parts = _read_parts(folder, configs, dtype, scheduler)
    for module in parts.modules:
        module.requires_grad_(False)
        # Convolutions want channels last, and would turn what comes to them, or their weights, at every call.
        module.to(on, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return assemble(name, parts, facts, runner)


def assemble(name: str, parts: Parts, facts: ModelFacts, runner: str = "pytorch") -> EditModel:
    """A model of these objects, none of which is changed."""
    kind = CompiledRunner if runner == "pytorch-compiled" else PyTorchRunner
    return EditModel(
        name=name,
        tokenizers=parts.tokenizers,
        text=TextEncoders(parts.text_encoders),
        runner=kind(parts.unet, map_divisor=facts.map_divisor),
        vae=parts.vae,
        scheduler=parts.scheduler,
        facts=facts,
        latent_size=trained_side(parts.unet),
        latent_scale=parts.vae.config.scaling_factor,
        vae_factor=2 ** (len(parts.vae.config.block_out_channels) - 1),
        max_tokens=parts.text_encoders[0].config.max_position_embeddings,
        wide_vae=parts.wide_vae,
    )


def _read_parts(folder: Path, configs: Configs, dtype: torch.dtype, scheduler: Any) -> Parts:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    family = configs.index.family
    tokenizers = tuple(settled(read_part(folder, part, CLIPTokenizer)) for part in family.tokenizers)
    for tokenizer, text in zip(tokenizers, configs.texts, strict=True):
        refuse_unknown_tokens(tokenizer, text.vocab_size, folder)
    if scheduler is None:
        # Whatever scheduler the checkpoint names, DDIM takes its noise schedule; clipping would not be linear.
        scheduler = read_part(folder, "scheduler", DDIMScheduler, clip_sample=False, thresholding=False)
    scheduler = follow_pipelines(scheduler)
    Schedule.from_scheduler(scheduler, 10)
    encoders = []
    for part, text in zip(family.text_encoders, configs.texts, strict=True):
        pooled = len(configs.texts) > 1 and part == family.text_encoders[-1]
        kind: Any = CLIPTextModelWithProjection if pooled else CLIPTextModel
        encoders.append(read_part(folder, part, kind, config=CLIPTextConfig(**text.fields), dtype=dtype))
    wide = family.wide_vae and configs.vae.force_upcast
    vae_dtype = torch.float32 if wide and dtype == torch.float16 else dtype
    return Parts(
        tokenizers=tokenizers,
        text_encoders=tuple(encoders),
        unet=read_part(folder, "unet", UNet2DConditionModel, torch_dtype=dtype),
        vae=read_part(folder, "vae", AutoencoderKL, torch_dtype=vae_dtype),
        scheduler=scheduler,
        wide_vae=wide,
    )


def refuse_unknown_tokens(tokenizer: Any, known: int, folder: Path) -> None:
    """Raise for a tokenizer with more tokens than its text encoder has embeddings."""
    if len(tokenizer) > known:
        raise ModelError(
            f"the tokenizer of {folder} has {len(tokenizer)} tokens, its text encoder knows {known}; "
            "copy both from one checkpoint"
        )


def load_bundle(
    folder: str | Path,
    runner: str = "onnxruntime",
    *,
    device: str | torch.device | None = None,
    verify: bool = True,
) -> BundleModel:
    """Open a bundle behind a runner. device: of its kind; None: the first. verify: see `Bundle.open`.

    Raises `BundleError` for a folder that is no whole bundle, `RunnerError` where the runner can't run here.
    """
    import diffusers
    from transformers import CLIPTokenizer

    bundle = Bundle.open(expanded(folder_path(folder)), verify=verify)
    manifest = bundle.manifest
    kind: Any = getattr(diffusers, manifest.scheduler, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise ModelError(
            f"{folder} names the scheduler {manifest.scheduler!r}, which diffusers does not have"
        )
    for part in manifest.tokenizers:
        read_config(bundle.folder / part / TOKENIZER_FILE, TokenizerConfig)
    read_config(bundle.folder / SCHEDULER_FILE, SchedulerConfig)
    tokenizers = [settled(read_part(bundle.folder, part, CLIPTokenizer)) for part in manifest.tokenizers]
    for tokenizer in tokenizers:
        refuse_unknown_tokens(tokenizer, manifest.vocabulary, bundle.folder)
    scheduler = read_part(bundle.folder, "scheduler", kind)
    return BundleModel(
        name=str(folder),
        tokenizers=tuple(tokenizers),
        text=None,
        runner=open_bundle_runner(bundle, runner, device),
        vae=None,
        scheduler=scheduler,
        facts=ModelFacts.read(bundle.folder),
        latent_size=manifest.height,
        latent_scale=manifest.vae.scaling_factor,
        vae_factor=manifest.vae.factor,
        max_tokens=manifest.tokens,
    )


def load_vocabulary(source: str | Path | None = None) -> Vocabulary:
    """The tokenizer of a bundle or of a checkpoint alone, which is enough to align prompts. Raises as loading does."""
    from transformers import CLIPTokenizer

    usual: dict[str, Any] = {}
    if is_bundle(source):
        name, bundle = str(source), Bundle.open(expanded(str(source)), verify=False)
        folder, tokens = bundle.folder, bundle.manifest.tokens
        read_config(folder / "tokenizer" / TOKENIZER_FILE, TokenizerConfig)
    else:
        name, folder = locate(source)
        index = read_index(folder)
        usual = index.usual_facts
        tokens = read_words_configs(folder, index.family)[0].max_position_embeddings
    return Vocabulary(
        name=name,
        tokenizer=settled(read_part(folder, "tokenizer", CLIPTokenizer)),
        max_tokens=tokens,
        facts=ModelFacts.read(folder, **usual),
    )


def usable_device(device: str | torch.device | None) -> torch.device:
    """A device that works here; None: CUDA where there is one, else the CPU."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ModelError(f"device {str(device)!r} can't be used here ({reason}); use 'cpu'") from error
    return device
