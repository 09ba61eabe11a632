"""Bundles where the pipeline wants a model: exported from a checkpoint, loaded behind any runner."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adapedit.arguments import folder_path
from adapedit.checkpoint import expanded
from adapedit.model import EditModel, ModelError, ModelFacts, Vocabulary, load_model, load_vocabulary
from adapedit.words import settled
from adapedit_engine.bundle import Bundle
from adapedit_engine.manifest import MANIFEST_FILE
from adapedit_engine.runners import BUNDLE_RUNNERS, CHECKPOINT_RUNNERS, RunnerError, open_bundle_runner
from adapedit_engine.runners.graphs import BundleRunner
from adapedit_engine.runners.pytorch import PyTorchRunner

if TYPE_CHECKING:
    from adapedit_export.export import Checkpoint


@dataclasses.dataclass(frozen=True, kw_only=True)
class BundleModel(EditModel):
    """A model whose text encoder and VAE are graphs of a bundle, too."""

    runner: BundleRunner

    @property
    def vae_factor(self) -> int:
        return self.runner.bundle.manifest.vae.factor

    @property
    def latent_scale(self) -> float:
        return self.runner.bundle.manifest.vae.scaling_factor

    @property
    def max_tokens(self) -> int:
        return self.runner.bundle.manifest.tokens

    def encode_ids(self, input_ids: Tensor) -> Tensor:
        return self.runner.encode_ids(input_ids)

    def encode(self, pixels: Tensor) -> Tensor:
        return self.runner.encode(pixels).cpu()

    def decode(self, latents: Tensor) -> Tensor:
        return self.runner.decode(latents)


def is_bundle(source: str | Path | None) -> bool:
    """Whether `source` is the folder of a bundle, whole or not."""
    try:
        return source is not None and (expanded(source) / MANIFEST_FILE).is_file()
    except OSError:
        return False  # too long for a name, or closed to us: whoever opens it says so


def load_bundle(folder: str | Path, runner: str = "onnxruntime", *, verify: bool = True) -> BundleModel:
    """Open a bundle behind a runner. verify: see `Bundle.open`.

    Raises `BundleError` for a folder that is no whole bundle, `RunnerError` where the runner can't run here.
    """
    import diffusers
    from transformers import CLIPTokenizer

    bundle = Bundle.open(expanded(folder_path(folder)), verify=verify)
    opened = open_bundle_runner(bundle, runner)
    kind: Any = getattr(diffusers, bundle.manifest.scheduler, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise ModelError(
            f"{folder} names the scheduler {bundle.manifest.scheduler!r}, which diffusers does not have"
        )
    scheduler: Any = kind
    return BundleModel(
        name=str(folder),
        tokenizer=settled(CLIPTokenizer.from_pretrained(bundle.folder, subfolder="tokenizer")),
        text_encoder=None,
        runner=opened,
        vae=None,
        scheduler=scheduler.from_pretrained(bundle.folder, subfolder="scheduler"),
        facts=ModelFacts.read(bundle.folder),
        latent_size=bundle.manifest.height,
    )


def load_any_vocabulary(source: str | Path | None = None) -> Vocabulary:
    """The tokenizer of a bundle or of a checkpoint alone. Raises as `load_bundle` and `load_model` do."""
    if not is_bundle(source):
        return load_vocabulary(source)
    from transformers import CLIPTokenizer

    bundle = Bundle.open(expanded(str(source)), verify=False)
    return Vocabulary(
        name=str(source),
        tokenizer=settled(CLIPTokenizer.from_pretrained(bundle.folder, subfolder="tokenizer")),
        max_tokens=bundle.manifest.tokens,
        facts=ModelFacts.read(bundle.folder),
    )


def load_any(
    source: str | Path | None = None,
    *,
    runner: str | None = None,
    device: str | torch.device = "cpu",
    torch_dtype: torch.dtype = torch.float32,
) -> EditModel:
    """A bundle behind a runner (by default "onnxruntime"), or a checkpoint ("pytorch", "pytorch-compiled").

    A runner that was named is never replaced by another one.
    """
    if is_bundle(source):
        return load_bundle(str(source), runner or "onnxruntime")
    if runner is not None and runner not in CHECKPOINT_RUNNERS:
        if runner in BUNDLE_RUNNERS:
            command = f"adapedit export {source or 'builtin'} --out BUNDLE"
            raise RunnerError(f"runner {runner!r} wants a bundle; make one: {command}")
        known = ", ".join((*CHECKPOINT_RUNNERS, *BUNDLE_RUNNERS))
        raise RunnerError(f"there is no runner {runner!r}; use one of: {known}")
    model = load_model(source, device=device, dtype=torch_dtype)
    if runner == "pytorch-compiled":
        from adapedit_engine.runners.pytorch import CompiledRunner

        compiled = CompiledRunner(unet_of(model), map_divisor=model.facts.map_divisor)
        return dataclasses.replace(model, runner=compiled)
    return model


def unet_of(model: EditModel) -> Any:
    """The diffusers UNet of a model that runs in PyTorch."""
    if not isinstance(model.runner, PyTorchRunner):
        raise RunnerError(f"{model.name!r} is a bundle; give the checkpoint that it was made from")
    return model.runner.controlled.unet


def checkpoint_of(model: EditModel) -> Checkpoint:
    """A loaded model as what the export takes."""
    from adapedit_export.export import Checkpoint

    return Checkpoint(
        name=model.name,
        unet=unet_of(model),
        map_divisor=model.facts.map_divisor,
        text_encoder=model.text_encoder,
        vae=model.vae,
        tokenizer=model.tokenizer,
        scheduler=model.scheduler,
        facts=dataclasses.asdict(model.facts),
        latent_size=model.latent_size,
        guidance_scale=model.facts.guidance_scale,
    )
