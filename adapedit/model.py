"""A text-to-image model as the pipeline wants it: a checkpoint or a bundle, checked, and loaded whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from adapedit.methods import make_settings, one_line
from adapedit.prompts.tokens import framed_ids, settled
from adapedit.result import folder_path
from adapedit_engine.bundle import Bundle
from adapedit_engine.manifest import MANIFEST_FILE
from adapedit_engine.runners.base import (
    BUNDLE_RUNNERS,
    CHECKPOINT_RUNNERS,
    Runner,
    RunnerError,
    open_bundle_runner,
)
from adapedit_engine.runners.graphs import BundleRunner
from adapedit_engine.runners.pytorch import CompiledRunner, PyTorchRunner
from adapedit_engine.schedule import Schedule, scheduler_of
from adapedit_kernels.errors import AdapEditError

if TYPE_CHECKING:
    from adapedit_export.export import Checkpoint

BUILTIN = Path(__file__).parent / "builtin"
FACTS_FILE = "adapedit.json"
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
MAX_LAYERS, MAX_WIDTH = 64, 1 << 16
"""Of what a configuration may ask for: blocks or layers, and channels or tokens."""


class ModelError(AdapEditError):
    """A model that is not there, is broken, or is of a kind that can't be edited."""


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
class ModelFacts:
    """What the method has to know of a model beyond its configuration; from `adapedit.json` where there is one.

    map_divisor:    latent side over map side; None: half of the latent side where that exists (SD: 32 of 64).
    self_divisor:   self-attention is taken from the source where the side is at most 1/self_divisor of the latents'.
    guidance_scale: what a request gets that names none.
    known_words:    all words of a model with a closed vocabulary, else None.
    defaults:       per method, knobs that differ from the paper's, found by measurement.
    """

    map_divisor: Annotated[int, Field(ge=1, le=64)] | None = None
    self_divisor: Annotated[int, Field(ge=1, le=64)] = 4
    guidance_scale: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = 7.5
    known_words: tuple[str, ...] | None = None
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    @classmethod
    def read(cls, folder: Path | None) -> ModelFacts:
        """The facts beside a checkpoint, or the paper's where there are none. Raises `ModelError` for a bad file."""
        path = None if folder is None else folder / FACTS_FILE
        if path is None or not path.exists():
            return cls()
        try:
            facts = TypeAdapter(cls).validate_python(json.loads(path.read_text(encoding="utf-8")))
            for method, knobs in facts.defaults.items():
                make_settings(method, **knobs)
        except (ValueError, OSError, RecursionError) as error:
            reason = one_line(error) if isinstance(error, ValidationError) else str(error)
            raise ModelError(f"{path} can't be used ({reason}); correct it or remove it") from error
        return facts


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

    A runner that was named is never replaced by another one.
    """
    if is_bundle(source):
        if dtype not in (None, torch.float32):
            raise ModelError(
                f"{source} is a bundle, whose dtype was chosen when it was made; leave --dtype out"
            )
        model: EditModel = load_bundle(str(source), runner or "onnxruntime")
        return model if scheduler is None else model.with_scheduler(scheduler)
    if runner is not None and runner not in CHECKPOINT_RUNNERS:
        if runner in BUNDLE_RUNNERS:
            command = f"adapedit export {source or 'builtin'} --out BUNDLE"
            raise RunnerError(f"runner {runner!r} wants a bundle; make one: {command}")
        known = ", ".join((*CHECKPOINT_RUNNERS, *BUNDLE_RUNNERS))
        raise RunnerError(f"there is no runner {runner!r}; use one of: {known}")
    return load_model(source, device=device, dtype=dtype, scheduler=scheduler, runner=runner or "pytorch")


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
    place = locate(source)
    facts = ModelFacts.read(place.folder)
    configs = read_configs(place)
    on = usable_device(device)
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = settled(read_part(place, "tokenizer", CLIPTokenizer))
    if scheduler is None:
        # Whatever scheduler the checkpoint names, DDIM takes its noise schedule; clipping would not be linear.
        scheduler = read_part(place, "scheduler", DDIMScheduler, clip_sample=False, thresholding=False)
    else:
        Schedule.from_scheduler(scheduler, 10)
    text_encoder = read_part(place, "text_encoder", CLIPTextModel, dtype=dtype)
    unet = read_part(place, "unet", UNet2DConditionModel, torch_dtype=dtype)
    vae = read_part(place, "vae", AutoencoderKL, torch_dtype=dtype)
    for module in (text_encoder, unet, vae):
        module.requires_grad_(False)
        # Convolutions want channels last, and would turn what comes to them, or their weights, at every call.
        module.to(on, memory_format=torch.channels_last).eval()
    kind = CompiledRunner if runner == "pytorch-compiled" else PyTorchRunner
    return EditModel(
        name=place.name,
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        runner=kind(unet, map_divisor=facts.map_divisor),
        vae=vae,
        scheduler=scheduler,
        facts=facts,
        latent_size=configs.side,
        latent_scale=configs.latent_scale,
        vae_factor=configs.vae_factor,
        max_tokens=configs.max_tokens,
    )


def load_bundle(folder: str | Path, runner: str = "onnxruntime", *, verify: bool = True) -> BundleModel:
    """Open a bundle behind a runner. verify: see `Bundle.open`.

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
    place = Place(name=str(folder), folder=bundle.folder)
    tokenizer = settled(read_part(place, "tokenizer", CLIPTokenizer))
    scheduler = read_part(place, "scheduler", kind)
    return BundleModel(
        name=str(folder),
        tokenizer=tokenizer,
        text_encoder=None,
        runner=open_bundle_runner(bundle, runner),
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
    from transformers import CLIPTextConfig, CLIPTokenizer

    if is_bundle(source):
        bundle = Bundle.open(expanded(str(source)), verify=False)
        place, tokens = Place(name=str(source), folder=bundle.folder), bundle.manifest.tokens
    else:
        place = locate(source)
        tokens = int(read_part(place, "text_encoder", CLIPTextConfig).max_position_embeddings)
    return Vocabulary(
        name=place.name,
        tokenizer=settled(read_part(place, "tokenizer", CLIPTokenizer)),
        max_tokens=tokens,
        facts=ModelFacts.read(place.folder),
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


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a checkpoint is. name: as asked for; folder: on disk, or None where `name` is one of a hub.

    cached: take nothing but what was fetched from the hub before.
    """

    name: str
    folder: Path | None
    cached: bool = False

    @property
    def location(self) -> str | Path:
        """What `from_pretrained` takes."""
        return self.name if self.folder is None else self.folder


@dataclass(frozen=True, kw_only=True)
class Configs:
    """What configurations say of a checkpoint that can be edited; see `EditModel`."""

    side: int
    latent_scale: float
    vae_factor: int
    max_tokens: int


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
    try:
        return source is not None and (expanded(source) / MANIFEST_FILE).is_file()
    except OSError:
        return False  # too long for a name, or closed to us: whoever opens it says so


def locate(source: str | Path | None) -> Place:
    """The built-in model (None or "builtin"), a folder, or a hub name; raises `ModelError` for anything else.

    Of a folder the layout is looked at, and that its safetensors files are whole.
    """
    name = "builtin" if source is None else str(source)
    folder = BUILTIN if name == "builtin" else expanded(name)
    if is_bundle(folder):
        raise ModelError(
            f"{folder} is a bundle; open it with AdapEditPipeline.from_bundle, or --model with --runner"
        )
    if _is_folder(folder):
        _check_folder(folder)
        return Place(name=name, folder=folder)
    if len(name) < MAX_NAME and HUB_NAME.fullmatch(name) and not folder.exists():
        return _on_hub(name)
    shown = name if len(name) < MAX_NAME else name[:MAX_NAME] + "..."
    raise ModelError(
        f"there is no model at {shown!r}; give 'builtin', a folder in the diffusers layout, or a hub name (owner/name)"
    )


def _on_hub(name: str) -> Place:
    """Asks once whether the hub can be reached: its own client tries for minutes, file after file."""
    from huggingface_hub import constants, try_to_load_from_cache

    url = urlsplit(constants.ENDPOINT)
    reached = not constants.HF_HUB_OFFLINE
    if reached and not getproxies():
        try:
            port = url.port or (443 if url.scheme == "https" else 80)
            socket.create_connection((url.hostname or "", port), timeout=5).close()
        except OSError:
            reached = False
    if not reached and not isinstance(try_to_load_from_cache(name, "model_index.json"), str):
        raise ModelError(
            f"there is no folder {name!r}, and the hub at {constants.ENDPOINT} can't be reached to fetch it; "
            "give a folder in the diffusers layout, or try again with a connection"
        )
    return Place(name=name, folder=None, cached=not reached)


def _is_folder(path: Path) -> bool:
    """As `Path.is_dir`, but of what is too long for a path it is no folder, either."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _check_folder(folder: Path) -> None:
    if (folder / "model_index.json").is_file():
        pipeline = str(_json(folder / "model_index.json").get("_class_name", ""))
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


def read_configs(place: Place) -> Configs:
    """What an edit needs of the configurations, checked before weights are read. Raises `ModelError`."""
    unet, vae, text = (_config(place, part) for part in WITH_WEIGHTS[1:] + WITH_WEIGHTS[:1])
    for part, config, wanted in (("unet", unet, "UNet2DConditionModel"), ("vae", vae, "AutoencoderKL")):
        if config.get("_class_name", wanted) != wanted:
            raise _unfit(place, part, "_class_name", config["_class_name"], wanted)
    _bounded(place, "unet", unet)
    _bounded(place, "vae", vae)
    _bounded(place, "text_encoder", text)
    channels, latent = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if unet.get("out_channels", 4) != latent:
        raise _unfit(
            place, "unet", "out_channels", unet.get("out_channels"), f"the VAE's {latent} latent channels"
        )
    if channels not in (latent, 2 * latent):
        raise _unfit(place, "unet", "in_channels", channels, f"{latent}, or {2 * latent} for InstructPix2Pix")
    scale = vae.get("scaling_factor", 0.18215)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < 1e6:
        raise _unfit(place, "vae", "scaling_factor", scale, "a positive number")
    if unet.get("cross_attention_dim", 1280) != text.get("hidden_size", 512):
        got = unet.get("cross_attention_dim")
        raise _unfit(
            place, "unet", "cross_attention_dim", got, f"the text encoder's {text.get('hidden_size')}"
        )
    blocks = vae.get("block_out_channels", (64,))
    side = unet.get("sample_size")
    sides = side if isinstance(side, list) and side else [64 if side is None else side]
    if not all(isinstance(one, int) and 1 <= one <= 4096 for one in sides):
        raise _unfit(place, "unet", "sample_size", side, "a whole number of latent cells, or two of them")
    return Configs(
        side=min(sides),
        latent_scale=float(scale),
        vae_factor=2 ** (len(blocks) - 1),
        max_tokens=int(text.get("max_position_embeddings", 77)),
    )


def _config(place: Place, part: str) -> dict[str, Any]:
    if place.folder is not None:
        return _json(place.folder / part / "config.json")
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(place.name, "config.json", subfolder=part, local_files_only=place.cached)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"the {part} of model {place.name!r} can't be fetched: {reason}") from error
    return _json(Path(path))


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} can't be read as JSON ({error}); copy the model again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is no JSON object; copy the model again")
    return content


def _bounded(place: Place, part: str, config: dict[str, Any]) -> None:
    """Sizes that a model of this kind has: a configuration that asks for a million layers is built for hours."""
    for name, value in config.items():
        counts = name.startswith(("num_", "layers_per", "transformer_layers", "mid_block_layers"))
        limit = MAX_LAYERS if counts and "train" not in name and "embeddings" not in name else MAX_WIDTH
        values = value if isinstance(value, list) else [value]
        if len(values) > MAX_LAYERS and name.endswith(("types", "channels", "block")):
            raise _unfit(place, part, name, f"{len(values)} entries", f"at most {MAX_LAYERS}")
        wide = ("channels", "dim", "size", "embeddings")
        if (not counts and not name.endswith(wide)) or name == "vocab_size":
            continue
        for one in values:
            if isinstance(one, int) and not isinstance(one, bool) and not 0 <= one <= limit:
                raise _unfit(place, part, name, one, f"at most {limit}")


def _unfit(place: Place, part: str, name: str, got: Any, wanted: str) -> ModelError:
    return ModelError(
        f"the {part} of model {place.name!r} has {name} {got!r}, wanted {wanted}; give another checkpoint"
    )


def read_part(place: Place, part: str, kind: Any, **options: Any) -> Any:
    """One component, by its class's `from_pretrained`; raises `ModelError` where it can't be built from the files."""
    modular = issubclass(kind, nn.Module)
    if place.cached:
        options["local_files_only"] = True
    if modular:
        options |= {"use_safetensors": True, "output_loading_info": True}
    try:
        with _quiet_libraries():
            read = kind.from_pretrained(place.location, subfolder=part, **options)
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"the {part} of model {place.name!r} can't be loaded: {reason}") from error
    if not modular:
        return read
    module, info = read
    # Both libraries fill up what a file lacks with random numbers, leave out what they know no place for, and only say
    # so in the log.
    absent, spare = (sorted(info.get(name, ())) for name in ("missing_keys", "unexpected_keys"))
    if absent:
        raise ModelError(
            f"the {part} of model {place.name!r} lacks {len(absent)} of its weights, {absent[0]} among them; "
            "copy the model again"
        )
    spare = [name for name in spare if not name.endswith("position_ids")]
    if spare:
        raise ModelError(
            f"the {part} of model {place.name!r} has {len(spare)} weights that it has no place for, {spare[0]} among "
            "them; if these are a LoRA's, merge it (fuse_lora) before saving"
        )
    _check_numbers(module, part, place)
    return module


def _check_numbers(module: nn.Module, part: str, place: Place) -> None:
    for name, weight in module.named_parameters():
        # A sum costs one pass and no memory, and no infinity or NaN is lost in it.
        if not bool(weight.detach().sum(dtype=torch.float32).isfinite()):
            raise ModelError(
                f"the {part} of model {place.name!r} has numbers in {name} that are none (NaN or infinite); "
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
