"""Checkpoints and bundles to models, each loaded whole or not at all."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adapedit.checkpoints import Folder, Source, expanded, is_bundle, locate, read_part
from adapedit.configs import (
    SCHEDULER_FILE,
    TOKENIZER_FILE,
    ModelError,
    ModelFacts,
    SchedulerConfig,
    TokenizerConfig,
    read_config,
    read_configs,
)
from adapedit.families import OTHERS, SUPPORTED, Family, family_of
from adapedit.model import BundleModel, EditModel
from adapedit.prompts.tokens import settled
from adapedit.result import folder_path
from adapedit.single_files import check_file, config_of, convert
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
    """What is known of a model without its weights, and enough to align prompts and to refuse requests.

    max_tokens: the text encoder's own limit. channels: that the UNet takes, and gives.
    """

    name: str
    tokenizer: Any
    max_tokens: int
    channels: tuple[int, int]
    facts: ModelFacts


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A checkpoint's own objects by diffusers' names, and what is known of them.

    checks_safety: whether diffusers would look at its pictures, which is not done here.
    """

    family: Family
    components: Mapping[str, Any]
    facts: ModelFacts
    checks_safety: bool


def load_any(
    source: Source | str | Path | None = None,
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
    source = Source.of(source)
    if is_bundle(source):
        if dtype not in (None, torch.float32):
            raise ModelError(
                f"{source.name} is a bundle, whose dtype was chosen when it was made; leave --dtype out"
            )
        model: EditModel = load_bundle(source.name, runner or "onnxruntime", device=device)
        return model if scheduler is None else model.with_scheduler(scheduler)
    if runner is None or runner in CHECKPOINT_RUNNERS:
        return load_model(source, device=device, dtype=dtype, scheduler=scheduler, runner=runner or "pytorch")
    if runner not in BUNDLE_RUNNERS:
        known = ", ".join((*CHECKPOINT_RUNNERS, *BUNDLE_RUNNERS))
        raise RunnerError(f"there is no runner {runner!r}; use one of: {known}")
    if BUNDLE_RUNNERS[runner] == "tensorrt":
        commands = f"adapedit export {source.name} --out BUNDLE, then adapedit build BUNDLE"
        raise RunnerError(f"runner {runner!r} wants a bundle with plans; make one: {commands}")
    device_of(runner, device)
    from adapedit.exports import cached_bundle

    model = load_bundle(cached_bundle(source, dtype), runner, device=device)
    return model if scheduler is None else model.with_scheduler(scheduler)


def load_model(
    source: Source | str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    scheduler: Any = None,
    runner: str = "pytorch",
) -> EditModel:
    """Load the built-in model (None or "builtin"), a diffusers folder, a single file, or a hub name that is given.

    Weights are read from safetensors files only; configurations and files are checked before anything is built. Raises
    `ModelError` with the mend in one line.
    """
    dtype = torch.float32 if dtype is None else dtype
    if not isinstance(dtype, torch.dtype):
        raise ModelError(f"dtype is {dtype!r}, wanted one of PyTorch, for example torch.float16")
    source, on = Source.of(source), usable_device(device)
    if source.is_file:
        name, parts = source.name, _parts_of(convert(source, dtype), scheduler)
    else:
        folder = locate(source)
        name, parts = folder.name, _read_parts(folder, dtype, scheduler)
    for part in parts.family.with_weights:
        module = parts.components[part].requires_grad_(False)
        # Convolutions want channels last, and would turn what comes to them, or their weights, at every call.
        module.to(on, memory_format=torch.channels_last).eval()
    return _assemble(name, parts, runner)


def _assemble(name: str, parts: Parts, runner: str = "pytorch") -> EditModel:
    """A model of these objects, none of which is changed."""
    kind = CompiledRunner if runner == "pytorch-compiled" else PyTorchRunner
    family, facts, unet, vae = parts.family, parts.facts, parts.components["unet"], parts.components["vae"]
    wide = family.wide_vae and bool(vae.config.force_upcast)
    if wide and vae.dtype == torch.float16:
        vae = copy.deepcopy(vae).float()
    encoders = tuple(parts.components[part] for part in family.text_encoders)
    return EditModel(
        name=name,
        tokenizers=tuple(settled(parts.components[part]) for part in family.tokenizers),
        text=TextEncoders(encoders),
        runner=kind(unet, map_divisor=facts.map_divisor),
        vae=vae,
        scheduler=parts.components["scheduler"],
        facts=facts,
        latent_size=trained_side(unet),
        latent_scale=vae.config.scaling_factor,
        vae_factor=2 ** (len(vae.config.block_out_channels) - 1),
        max_tokens=encoders[0].config.max_position_embeddings,
        wide_vae=wide,
        safety_checker_off=parts.checks_safety,
    )


def _read_parts(source: Folder, dtype: torch.dtype, scheduler: Any) -> Parts:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    folder, configs = source.path, read_configs(source.path)
    family, facts = configs.index.family, ModelFacts.read(folder, **configs.index.usual_facts)
    made: dict[str, Any] = {part: read_part(folder, part, CLIPTokenizer) for part in family.tokenizers}
    for tokenizer, text in zip(made.values(), configs.texts, strict=True):
        refuse_unknown_tokens(tokenizer, text.vocab_size, folder)
    if scheduler is None:
        # Whatever scheduler the checkpoint names, DDIM takes its noise schedule; clipping would not be linear.
        scheduler = read_part(folder, "scheduler", DDIMScheduler, clip_sample=False, thresholding=False)
    made["scheduler"] = _usable(scheduler)
    wide = family.wide_vae and configs.vae.force_upcast and dtype == torch.float16
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "unet": (UNet2DConditionModel, {"torch_dtype": dtype}),
        "vae": (AutoencoderKL, {"torch_dtype": torch.float32 if wide else dtype}),
    }
    for part, text in zip(family.text_encoders, configs.texts, strict=True):
        pooled = len(configs.texts) > 1 and part == family.text_encoders[-1]
        options = {"config": CLIPTextConfig(**text.fields), "dtype": dtype}
        kinds[part] = (CLIPTextModelWithProjection if pooled else CLIPTextModel, options)
    for part in family.with_weights:
        kind, options = kinds[part]
        made[part] = read_part(folder, part, kind, variant=source.variants.get(part), **options)
    return Parts(family=family, components=made, facts=facts, checks_safety=configs.index.checks_safety)


def _usable(scheduler: Any) -> Any:
    """A scheduler as pipelines have it. Raises `ScheduleError` for one that can't be used."""
    scheduler = follow_pipelines(scheduler)
    Schedule.from_scheduler(scheduler, 10)
    return scheduler


def refuse_unknown_tokens(tokenizer: Any, known: int, folder: Path) -> None:
    """Raise for a tokenizer with more tokens than its text encoder has embeddings."""
    if len(tokenizer) > known:
        raise ModelError(
            f"the tokenizer of {folder} has {len(tokenizer)} tokens, its text encoder knows {known}; "
            "copy both from one checkpoint"
        )


def load_pipe(pipe: Any, scheduler: Any = None) -> EditModel:
    """A model over the modules of a diffusers pipeline, which share them and stay as they are.

    scheduler: None: its own. Raises `ModelError` for what is no pipeline of a supported family, or is moved about.
    """
    kind = type(pipe).__name__
    family = family_of(kind)
    others = [prefix for prefix in OTHERS if kind.startswith(prefix)]
    if not kind.startswith(family.pipeline) or others or not hasattr(pipe, "components"):
        raise ModelError(f"got a {kind}, wanted a diffusers pipeline of {SUPPORTED}")
    parts = pipe.components
    absent = [part for part in family.components if parts.get(part) is None]
    if absent:
        raise ModelError(f"this {kind} has no {', '.join(absent)}; load it whole")
    if any(hasattr(part, "_hf_hook") for part in parts.values()):
        raise ModelError(
            f"the modules of this {kind} are offloaded; give one that lies on one device, by pipe.to"
        )
    return _assemble(pipe.config.get("_name_or_path") or kind, _parts_of(pipe, scheduler))


def _parts_of(pipe: Any, scheduler: Any) -> Parts:
    """A diffusers pipeline's own modules, and what the method has to know of them."""
    family = family_of(type(pipe).__name__)
    made = {**pipe.components, "scheduler": _usable(pipe.scheduler if scheduler is None else scheduler)}
    # Copies: an alignment settles how they pad and cut, and another pipeline sets that at each call.
    made |= {part: copy.deepcopy(made[part]) for part in family.tokenizers}
    zero = bool(pipe.config.get("force_zeros_for_empty_prompt"))
    return Parts(
        family=family,
        components=made,
        facts=ModelFacts(guidance_scale=family.guidance_scale, zero_unconditional=zero),
        checks_safety=made.get("safety_checker") is not None,
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


def load_vocabulary(source: Source | str | Path | None = None) -> Vocabulary:
    """What a bundle or a checkpoint says before its weights are read. Raises as loading does."""
    source = Source.of(source)
    if is_bundle(source):
        bundle = Bundle.open(expanded(source.name), verify=False)
        read_config(bundle.folder / "tokenizer" / TOKENIZER_FILE, TokenizerConfig)
        specs = bundle.manifest.specs
        channels = specs.in_channels, specs.out_channels
        return _vocabulary(source.name, bundle.folder, bundle.manifest.tokens, channels, {})
    if source.is_file:
        with config_of(source, check_file(expanded(source.name))) as folder:
            return _vocabulary_of(source.name, folder)
    return _vocabulary_of(source.name, locate(source).path)


def _vocabulary_of(name: str, folder: Path) -> Vocabulary:
    configs = read_configs(folder)
    tokens, unet = configs.texts[0].max_position_embeddings, configs.unet
    return _vocabulary(name, folder, tokens, (unet.in_channels, unet.out_channels), configs.index.usual_facts)


def _vocabulary(
    name: str, folder: Path, tokens: int, channels: tuple[int, int], usual: dict[str, Any]
) -> Vocabulary:
    from transformers import CLIPTokenizer

    return Vocabulary(
        name=name,
        tokenizer=settled(read_part(folder, "tokenizer", CLIPTokenizer)),
        max_tokens=tokens,
        channels=channels,
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
