"""A text-to-image model as the pipeline wants it: a checkpoint or a bundle, checked, and loaded whole or not at all."""

from __future__ import annotations

import dataclasses
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from adapedit.configs import (
    SCHEDULER_FILE,
    TOKENIZER_FILE,
    Config,
    ModelError,
    ModelFacts,
    SchedulerConfig,
    TokenizerConfig,
    read_config,
    read_configs,
    read_words_configs,
)
from adapedit.prompts.tokens import framed_ids, settled
from adapedit.result import folder_path
from adapedit_engine.bundle import Bundle
from adapedit_engine.manifest import MANIFEST_FILE
from adapedit_engine.runners.base import (
    BUNDLE_RUNNERS,
    CHECKPOINT_RUNNERS,
    Runner,
    RunnerError,
    device_of,
    open_bundle_runner,
)
from adapedit_engine.runners.graphs import BundleRunner
from adapedit_engine.runners.pytorch import CompiledRunner, PyTorchRunner
from adapedit_engine.schedule import Schedule, follow_pipelines, scheduler_of
from adapedit_kernels.errors import AdapEditError

if TYPE_CHECKING:
    from adapedit_export.export import Checkpoint

BUILTIN = Path(__file__).parent / "builtin"
COMPONENTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
WITH_WEIGHTS = ("text_encoder", "unet", "vae")
MAX_NAME = 200
"""Characters; more than the hub allows for a name."""
HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")
OTHER_FAMILIES = {
    "StableDiffusionXL": "Stable Diffusion XL",
    "StableDiffusion3": "Stable Diffusion 3",
    "Flux": "FLUX",
    "PixArt": "PixArt",
    "Kandinsky": "Kandinsky",
}


class NumericError(AdapEditError):
    """Numbers that are none (NaN or infinite), as they come of half precision that overflows."""

    @classmethod
    def of(cls, where: str) -> NumericError:
        """where: what gave them first."""
        return cls(
            f"{where} gave numbers that are none (NaN or infinite); load the model with torch_dtype torch.bfloat16 or "
            "torch.float32 (--dtype), and keep guidance_scale moderate"
        )


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What is needed to align prompts for a model. max_tokens: N, the text encoder's own limit."""

    name: str
    tokenizer: Any
    max_tokens: int
    facts: ModelFacts


@dataclass(frozen=True, kw_only=True)
class EditModel:
    """Tokenizer, text encoder, UNet behind a runner, VAE and scheduler of one checkpoint.

    latent_size: side of the latents that it was trained for. latent_scale: latents over what the VAE's encoder gives.
    vae_factor: pixels to one latent cell, per side. max_tokens: N, the text encoder's own limit (77 for SD).
    """

    name: str
    tokenizer: Any
    text_encoder: Any
    runner: Runner
    vae: Any
    scheduler: Any
    facts: ModelFacts
    latent_size: int
    latent_scale: float
    vae_factor: int
    max_tokens: int

    @property
    def device(self) -> torch.device:
        return self.runner.device

    @property
    def side(self) -> int:
        """Side of a picture that the model was trained for, in pixels."""
        return self.latent_size * self.vae_factor

    @property
    def made_with(self) -> dict[str, str]:
        """What pictures depend on besides the model and the request, for whoever wants to repeat them bit for bit."""
        return {
            "runner": self.runner.name,
            "device": str(self.device),
            "dtype": str(self.runner.dtype).removeprefix("torch."),
            "scheduler": type(self.scheduler).__name__,
            **_versions(),
        }

    def schedule(self, num_inference_steps: int, solver: str = "model", **step_options: Any) -> Schedule:
        """The scheduler's, or a solver's on its noise levels, see `Schedule.from_scheduler`."""
        chosen = scheduler_of(solver, self.scheduler)
        return Schedule.from_scheduler(chosen, num_inference_steps, **step_options)

    def with_scheduler(self, scheduler: Any) -> EditModel:
        """The same with another diffusers scheduler. Raises `ScheduleError` for one that can't be used."""
        Schedule.from_scheduler(scheduler, 10)
        return dataclasses.replace(self, scheduler=scheduler)

    def check_size(self, height: int, width: int) -> None:
        """Raise where pictures of this size, in pixels, can't be made; a checkpoint takes all that its UNet halves."""

    @torch.inference_mode()
    def encode_ids(self, input_ids: Tensor) -> Tensor:
        """Token ids [B, N] to hidden states [B, N, D] in the text encoder's dtype."""
        return self.text_encoder(input_ids.to(self.text_encoder.device)).last_hidden_state

    def unconditional_ids(self) -> Tensor:
        """Ids [N] of the empty prompt, for classifier-free guidance."""
        return torch.tensor(framed_ids("", self.tokenizer, self.max_tokens), dtype=torch.int64, device="cpu")

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in 0..1 to latents [B, C, h, w] float32 on the CPU: the posterior's mean, nothing drawn.

        One picture at a time, as in `decode`.
        """
        given = (pixels * 2 - 1).to(self.vae.device, self.vae.dtype)
        means = [self.vae.encode(one[None]).latent_dist.mean.float().cpu() for one in given]
        return torch.cat(means) * self.latent_scale

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] to pixels [B, 3, H, W] float32 in 0..1, on the CPU.

        One picture at a time: its pixels do not depend on its neighbours, nor on how many there are. Raises
        `NumericError` where they are none.
        """
        pixels = torch.cat([self._decode(one[None]) for one in latents])
        if not bool(pixels.isfinite().all()):
            raise NumericError.of("the VAE's decoder")
        return pixels.clamp(0, 1)

    @torch.inference_mode()
    def _decode(self, latents: Tensor) -> Tensor:
        scaled = (latents / self.latent_scale).to(self.vae.device, self.vae.dtype)
        return self.vae.decode(scaled).sample.float().cpu() / 2 + 0.5


@dataclass(frozen=True, kw_only=True)
class BundleModel(EditModel):
    """A model whose text encoder and VAE are graphs of a bundle, too."""

    runner: BundleRunner

    def encode_ids(self, input_ids: Tensor) -> Tensor:
        return self.runner.encode_ids(input_ids)

    def encode(self, pixels: Tensor) -> Tensor:
        return self.runner.encode(pixels).cpu()

    def _decode(self, latents: Tensor) -> Tensor:
        return self.runner.decode(latents)

    def check_size(self, height: int, width: int) -> None:
        """Raise for a size that the bundle was not made for."""
        manifest = self.runner.bundle.manifest
        made = (manifest.height * self.vae_factor, manifest.width * self.vae_factor)
        if (height, width) != made:
            raise ModelError(
                f"the edit is {width} x {height} pixels, bundle {self.name} was made for {made[1]} x {made[0]}; export "
                f"one with --height {height} --width {width}"
            )


# -- loading


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
    facts = ModelFacts.read(folder)
    unet_config, vae_config, text_config = read_configs(folder)
    on = usable_device(device)
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    tokenizer = settled(read_part(folder, "tokenizer", CLIPTokenizer))
    refuse_unknown_tokens(tokenizer, text_config.vocab_size, folder)
    if scheduler is None:
        # Whatever scheduler the checkpoint names, DDIM takes its noise schedule; clipping would not be linear.
        scheduler = read_part(folder, "scheduler", DDIMScheduler, clip_sample=False, thresholding=False)
    scheduler = follow_pipelines(scheduler)
    Schedule.from_scheduler(scheduler, 10)
    text = CLIPTextConfig(**text_config.fields)
    text_encoder = read_part(folder, "text_encoder", CLIPTextModel, config=text, dtype=dtype)
    unet = read_part(folder, "unet", UNet2DConditionModel, torch_dtype=dtype)
    vae = read_part(folder, "vae", AutoencoderKL, torch_dtype=dtype)
    for module in (text_encoder, unet, vae):
        module.requires_grad_(False)
        # Convolutions want channels last, and would turn what comes to them, or their weights, at every call.
        module.to(on, memory_format=torch.channels_last).eval()
    kind = CompiledRunner if runner == "pytorch-compiled" else PyTorchRunner
    return EditModel(
        name=name,
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        runner=kind(unet, map_divisor=facts.map_divisor),
        vae=vae,
        scheduler=scheduler,
        facts=facts,
        latent_size=unet_config.sample_size,
        latent_scale=vae_config.scaling_factor,
        vae_factor=2 ** (len(vae_config.block_out_channels) - 1),
        max_tokens=text_config.max_position_embeddings,
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
    read_config(bundle.folder / TOKENIZER_FILE, TokenizerConfig)
    read_config(bundle.folder / SCHEDULER_FILE, SchedulerConfig)
    tokenizer = settled(read_part(bundle.folder, "tokenizer", CLIPTokenizer))
    refuse_unknown_tokens(tokenizer, manifest.vocabulary, bundle.folder)
    scheduler = read_part(bundle.folder, "scheduler", kind)
    return BundleModel(
        name=str(folder),
        tokenizer=tokenizer,
        text_encoder=None,
        runner=open_bundle_runner(bundle, runner, device),
        vae=None,
        scheduler=scheduler,
        facts=ModelFacts.read(bundle.folder),
        latent_size=manifest.height,
        latent_scale=manifest.vae.scaling_factor,
        vae_factor=manifest.vae.factor,
        max_tokens=manifest.tokens,
    )


def refuse_unknown_tokens(tokenizer: Any, known: int, folder: Path) -> None:
    """Raise for a tokenizer with more tokens than its text encoder has embeddings."""
    if len(tokenizer) > known:
        raise ModelError(
            f"the tokenizer of {folder} has {len(tokenizer)} tokens, its text encoder knows {known}; "
            "copy both from one checkpoint"
        )


def load_vocabulary(source: str | Path | None = None) -> Vocabulary:
    """The tokenizer of a bundle or of a checkpoint alone, which is enough to align prompts. Raises as loading does."""
    from transformers import CLIPTokenizer

    if is_bundle(source):
        name, bundle = str(source), Bundle.open(expanded(str(source)), verify=False)
        folder, tokens = bundle.folder, bundle.manifest.tokens
        read_config(folder / TOKENIZER_FILE, TokenizerConfig)
    else:
        name, folder = locate(source)
        tokens = read_words_configs(folder).max_position_embeddings
    return Vocabulary(
        name=name,
        tokenizer=settled(read_part(folder, "tokenizer", CLIPTokenizer)),
        max_tokens=tokens,
        facts=ModelFacts.read(folder),
    )


def checkpoint_of(model: EditModel) -> Checkpoint:
    """A loaded model as what the export takes."""
    from adapedit_export.export import Checkpoint

    if not isinstance(model.runner, PyTorchRunner):
        raise RunnerError(f"{model.name!r} is a bundle; give the checkpoint that it was made from")
    return Checkpoint(
        name=model.name,
        unet=model.runner.controlled.unet,
        map_divisor=model.facts.map_divisor,
        text_encoder=model.text_encoder,
        vae=model.vae,
        tokenizer=model.tokenizer,
        scheduler=model.scheduler,
        facts=dataclasses.asdict(model.facts),
        latent_size=model.latent_size,
        guidance_scale=model.facts.guidance_scale,
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


# -- finding and checking a checkpoint


def expanded(path: str | Path) -> Path:
    """With `~` and `~user` replaced; where there is no such user it stays, as a name that nothing has."""
    if not isinstance(path, (str, os.PathLike)):
        raise ModelError(f"folder is {path!r}, wanted a path")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def is_bundle(source: str | Path | None) -> bool:
    """Whether `source` is the folder of a bundle, whole or not."""
    return source is not None and os.path.isfile(expanded(source) / MANIFEST_FILE)


def locate(source: str | Path | None) -> tuple[str, Path]:
    """Name and folder of the built-in model (None or "builtin"), a folder, or a hub name.

    Raises `ModelError` for anything else. The layout is looked at, and that safetensors files are whole.
    """
    name = "builtin" if source is None else str(source)
    folder = BUILTIN if name == "builtin" else expanded(name)
    if is_bundle(folder):
        raise ModelError(
            f"{folder} is a bundle; open it with AdapEditPipeline.from_bundle, or --model with --runner"
        )
    if not os.path.isdir(folder):
        if len(name) >= MAX_NAME or not HUB_NAME.fullmatch(name) or os.path.exists(folder):
            raise ModelError(
                f"there is no model at {name[:MAX_NAME]!r}; give 'builtin', a folder in the diffusers layout, or a hub "
                "name (owner/name)"
            )
        folder = _fetched(name)
    _check_folder(folder)
    return name, folder


def _fetched(name: str) -> Path:
    """The folder of a hub's model, with nothing but what is read of it.

    Asks once whether the hub can be reached: its own client tries for minutes, file after file.
    """
    from huggingface_hub import constants, snapshot_download

    url, reached = urlsplit(constants.ENDPOINT), not constants.HF_HUB_OFFLINE
    if reached and not getproxies():
        try:
            port = url.port or (443 if url.scheme == "https" else 80)
            socket.create_connection((url.hostname or "", port), timeout=5).close()
        except OSError:
            reached = False
    wanted = ["*.json", "*.txt", *(f"{part}/*.safetensors" for part in WITH_WEIGHTS)]
    try:
        return Path(
            snapshot_download(
                name, allow_patterns=wanted, ignore_patterns="*.*.safetensors", local_files_only=not reached
            )
        )
    except Exception as error:
        if not reached:
            raise ModelError(
                f"there is no folder {name!r}, and the hub at {constants.ENDPOINT} can't be reached to fetch it; "
                "give a folder in the diffusers layout, or try again with a connection"
            ) from error
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"model {name!r} can't be fetched ({reason}); give a folder instead") from error


def _check_folder(folder: Path) -> None:
    if (folder / "model_index.json").is_file():
        index = read_config(folder / "model_index.json", Config).model_extra or {}
        pipeline = str(index.get("_class_name", ""))
        for prefix, family in OTHER_FAMILIES.items():
            if pipeline.startswith(prefix):
                raise ModelError(
                    f"{folder} is a checkpoint of {family} ({pipeline}), which is not supported yet; give one of "
                    "Stable Diffusion 1.x or 2.x"
                )
    missing = [part for part in COMPONENTS if not (folder / part).is_dir()]
    if not (folder / "model_index.json").is_file() or missing:
        what = f"no {', '.join(missing)}" if missing else "no model_index.json"
        raise ModelError(
            f"{folder} is no Stable Diffusion checkpoint in the diffusers layout ({what}); "
            "save one with StableDiffusionPipeline.save_pretrained"
        )
    for part in WITH_WEIGHTS:
        _check_weights(folder / part)


def _check_weights(folder: Path) -> None:
    """Raise `ModelError` unless `folder` has safetensors files under the names that are read, each of them whole."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(
            f"{folder} has no .safetensors file and pickled weights are never read; "
            "save the model with safe_serialization=True"
        )
    named = [path for path in weights if path.name.count(".") == 1]
    if not named:
        raise ModelError(
            f"{folder} has {weights[0].name} alone, a variant; save the model without one, or rename the file to "
            f"{weights[0].name.split('.')[0]}.safetensors"
        )
    for path in named:
        try:
            # Compares the header with the length of the file, too.
            with safe_open(path, "pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is corrupt or cut short ({error}); copy it again") from error


def read_part(folder: Path, part: str, kind: Any, **options: Any) -> Any:
    """One component, by its class's `from_pretrained`; raises `ModelError` where it can't be built from the files."""
    modular = issubclass(kind, nn.Module)
    if modular:
        options |= {"use_safetensors": True, "output_loading_info": True}
    try:
        with torch.device("cpu"), _quiet_libraries():
            read = kind.from_pretrained(folder, subfolder=part, **options)
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"the {part} of model {str(folder)!r} can't be loaded: {reason}") from error
    if not modular:
        return read
    module, info = read
    # Both libraries fill up what a file lacks with random numbers, leave out what they know no place for, and only say
    # so in the log.
    absent, spare = (sorted(info.get(name, ())) for name in ("missing_keys", "unexpected_keys"))
    if absent:
        raise ModelError(
            f"the {part} of model {str(folder)!r} lacks {len(absent)} of its weights, {absent[0]} among them; "
            "copy the model again"
        )
    spare = [name for name in spare if not name.endswith("position_ids")]
    if spare:
        raise ModelError(
            f"the {part} of model {str(folder)!r} has {len(spare)} weights that it has no place for, {spare[0]} among "
            "them; if these are a LoRA's, merge it (fuse_lora) before saving"
        )
    _check_numbers(module, part, folder)
    return module


def _check_numbers(module: nn.Module, part: str, folder: Path) -> None:
    for name, weight in module.named_parameters():
        # A sum costs one pass and no memory, and no infinity or NaN is lost in it.
        if not bool(weight.detach().sum(dtype=torch.float32).isfinite()):
            raise ModelError(
                f"the {part} of model {str(folder)!r} has numbers in {name} that are none (NaN or infinite); "
                "copy the model again"
            )


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Without their progress bars and their reports of missing weights, which are errors here."""
    import diffusers.utils.logging as of_diffusers
    import transformers.utils.logging as of_transformers

    libraries = (of_diffusers, of_transformers)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity(library.CRITICAL)
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, (level, bars) in zip(libraries, before, strict=True):
            library.set_verbosity(level)
            if bars:
                library.enable_progress_bar()


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "diffusers", "transformers")}
