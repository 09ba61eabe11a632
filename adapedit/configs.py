"""What the JSON files of a model say, within bounds: checked before anything is built, or a weight is read."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationInfo,
    field_validator,
)
from pydantic_core import from_json

from adapedit.families import STABLE_DIFFUSION_XL, Family, family_of
from adapedit.methods import make_settings
from adapedit_engine.manifest import read_bytes, reading
from adapedit_kernels.errors import AdapEditError

FACTS_FILE, INDEX_FILE = "adapedit.json", "model_index.json"
TOKENIZER_FILE, SCHEDULER_FILE = "tokenizer_config.json", "scheduler/scheduler_config.json"


class ModelError(AdapEditError):
    """A model that is not there, is broken, or is of a kind that can't be edited."""


def _known_knobs(defaults: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    for method, knobs in defaults.items():
        make_settings(method, **knobs)
    return defaults


def _smaller(side: Any) -> Any:
    """Of a size of two sides the smaller; what has none is as Stable Diffusion."""
    if isinstance(side, (list, tuple)) and all(type(one) is int for one in side):
        return min(side, default=side)
    return 64 if side is None else side


Count = Annotated[int, Field(ge=1, le=64)]
Width = Annotated[int, Field(ge=1, le=1 << 16)]
Small = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Token = Annotated[int, Field(ge=0, le=1 << 20)]
Side = Annotated[int, Field(ge=1, le=4096), BeforeValidator(_smaller)]
Counts = Annotated[tuple[Count, ...], Field(min_length=1, max_length=8)]
Widths = Annotated[tuple[Width, ...], Field(min_length=1, max_length=8)]


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What the method has to know of a model beyond its configuration; from `adapedit.json` where there is one.

    map_divisor:    latent side over map side; None: half of the latent side where that exists (SD: 32 of 64).
    self_divisor:   self-attention is taken from the source where the side is at most 1/self_divisor of the latents'.
    guidance_scale: what a request gets that names none.
    zero_unconditional: whether the empty prompt is zeros (SDXL), and not what text encoders make of it.
    known_words:    all words of a model with a closed vocabulary, else None.
    defaults:       per method, knobs that differ from the paper's, found by measurement.
    """

    map_divisor: Annotated[int, Field(ge=1, le=64)] | None = None
    self_divisor: Annotated[int, Field(ge=1, le=64)] = 4
    guidance_scale: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = 7.5
    zero_unconditional: bool = False
    known_words: tuple[str, ...] | None = None
    defaults: Annotated[dict[str, dict[str, Any]], AfterValidator(_known_knobs)] = field(default_factory=dict)

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    @classmethod
    def read(cls, folder: Path, **usual: Any) -> ModelFacts:
        """The facts beside a checkpoint; of those that are not named there the paper's, or `usual`.

        Raises `ModelError` for a bad file.
        """
        path = folder / FACTS_FILE
        if not path.exists():
            return cls(**usual)
        with reading(path, "correct it or remove it", ModelError):
            data = read_bytes(path)
            found, named = TypeAdapter(cls).validate_json(data), from_json(data)
            return replace(found, **{name: value for name, value in usual.items() if name not in named})


class Config(BaseModel):
    """A configuration file. Fields that are not named here have to have their class's default, see `read_config`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", protected_namespaces=())

    @property
    def fields(self) -> dict[str, Any]:
        """Those that are named here: what may come to the class that is built."""
        return self.model_dump(exclude=set(self.model_extra or ()))


class UNetConfig(Config):
    """Of a UNet of Stable Diffusion 1.x, 2.x or XL, or of a smaller one of their kind."""

    class_name: Literal["UNet2DConditionModel"] = Field("UNet2DConditionModel", alias="_class_name")
    sample_size: Side = 64
    in_channels: Width = 4
    out_channels: Width = 4
    down_block_types: tuple[Literal["CrossAttnDownBlock2D", "DownBlock2D"], ...] = ()
    mid_block_type: Literal["UNetMidBlock2DCrossAttn"] | None = None
    up_block_types: tuple[Literal["CrossAttnUpBlock2D", "UpBlock2D"], ...] = ()
    block_out_channels: Widths = (320, 640, 1280, 1280)
    layers_per_block: Count = 2
    norm_num_groups: Width = 32
    cross_attention_dim: Width = 1280
    attention_head_dim: Width | Widths = 8
    use_linear_projection: bool = False
    upcast_attention: bool | None = False
    transformer_layers_per_block: Count | Counts = 1
    addition_embed_type: Literal["text_time"] | None = None
    addition_time_embed_dim: Width | None = None
    projection_class_embeddings_input_dim: Width | None = None


class VaeConfig(Config):
    """Of the VAE; `scaling_factor`: latents over what its encoder gives."""

    class_name: Literal["AutoencoderKL"] = Field("AutoencoderKL", alias="_class_name")
    down_block_types: tuple[Literal["DownEncoderBlock2D"], ...] = ()
    up_block_types: tuple[Literal["UpDecoderBlock2D"], ...] = ()
    block_out_channels: Widths = (64,)
    layers_per_block: Count = 1
    latent_channels: Width = 4
    norm_num_groups: Width = 32
    sample_size: Side = 32
    scaling_factor: Annotated[float, Field(gt=0, le=1e6)] = 0.18215
    force_upcast: bool = True
    mid_block_add_attention: bool = True


class TextConfig(Config):
    """Of CLIP's text encoder."""

    model_type: Literal["clip_text_model"] = "clip_text_model"
    vocab_size: Annotated[int, Field(ge=1, le=1 << 20)] = 49408
    hidden_size: Width = 512
    projection_dim: Width = 512
    intermediate_size: Width = 2048
    num_hidden_layers: Count = 12
    num_attention_heads: Annotated[Width, Field(validate_default=True)] = 8
    max_position_embeddings: Annotated[int, Field(ge=3, le=4096)] = 77
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    layer_norm_eps: Small = 1e-5
    pad_token_id: Token = 1
    bos_token_id: Token = 49406
    eos_token_id: Token = 49407

    @field_validator("num_attention_heads")
    @classmethod
    def _divides_the_width(cls, heads: int, info: ValidationInfo) -> int:
        width = info.data.get("hidden_size", heads)
        if width % heads:
            raise ValueError(f"wanted a divisor of the hidden_size {width}, got {heads}")
        return heads


class TokenizerConfig(Config):
    """model_max_length: of no use here (the text encoder's limit counts), but asked for by the library."""

    model_max_length: Annotated[int, Field(ge=1)] = 77


class IndexConfig(Config):
    """`model_index.json`. force_zeros_for_empty_prompt: see `ModelFacts.zero_unconditional`; of SDXL alone."""

    class_name: str = Field(default="", alias="_class_name")
    force_zeros_for_empty_prompt: bool = True

    @property
    def checks_safety(self) -> bool:
        """Whether the checkpoint has a safety checker, whose library and class are named."""
        named = (self.model_extra or {}).get("safety_checker")
        return isinstance(named, list) and any(isinstance(name, str) for name in named)

    @property
    def family(self) -> Family:
        return family_of(self.class_name)

    @property
    def usual_facts(self) -> dict[str, Any]:
        """Of `ModelFacts`, what the family has otherwise."""
        zero = self.family is STABLE_DIFFUSION_XL and self.force_zeros_for_empty_prompt
        return {"guidance_scale": self.family.guidance_scale, "zero_unconditional": zero}


class SchedulerConfig(Config):
    """Of any scheduler of diffusers: the noise that the model was trained with."""

    num_train_timesteps: Annotated[int, Field(ge=1, le=10_000)] = 1000
    beta_start: Small = 0.0001
    beta_end: Small = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    trained_betas: Annotated[tuple[Small, ...], Field(max_length=10_000)] | None = None
    steps_offset: Annotated[int, Field(ge=0, le=1000)] = 0


AnyConfig = TypeVar("AnyConfig", bound=Config)


def read_config(path: Path, kind: type[AnyConfig], built: type | None = None) -> AnyConfig:
    """A configuration file. Raises `ModelError` in one line that names the file and the field.

    built: what is built from it: fields of it that `kind` does not name change what an edit can do, or can't, and have
    to have their defaults.
    """
    with reading(path, "give another checkpoint, or copy this one again", ModelError):
        config = kind.model_validate_json(read_bytes(path))
        known = {} if built is None else inspect.signature(built).parameters
        for name, value in (config.model_extra or {}).items():
            if name in known and value != known[name].default:
                raise _unfit(path, name, value, repr(known[name].default))
    return config


@dataclass(frozen=True, kw_only=True)
class Configs:
    """The configurations of a checkpoint. texts: of its text encoders, in order."""

    index: IndexConfig
    unet: UNetConfig
    vae: VaeConfig
    texts: tuple[TextConfig, ...]

    @property
    def fields(self) -> list[dict[str, Any]]:
        """Those of each, see `Config`."""
        return [one.fields for one in (self.index, self.unet, self.vae, *self.texts)]


def read_configs(folder: Path) -> Configs:
    """The configurations of a checkpoint, which go together. Raises `ModelError`."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    index, unet_file = read_index(folder), folder / "unet" / "config.json"
    texts = read_words_configs(folder, index.family)
    read_config(folder / SCHEDULER_FILE, SchedulerConfig)
    unet = read_config(unet_file, UNetConfig, UNet2DConditionModel)
    vae = read_config(folder / "vae" / "config.json", VaeConfig, AutoencoderKL)
    latent, words = vae.latent_channels, sum(text.hidden_size for text in texts)
    beside, several = texts[-1].projection_dim, len(texts) > 1
    if unet.addition_time_embed_dim is not None:
        beside += 6 * unet.addition_time_embed_dim
    for name, wanted, said in (
        ("addition_embed_type", ("text_time" if several else None,), f"that of {index.family.name}"),
        ("out_channels", (latent,), f"the VAE's {latent} latent channels"),
        (
            "in_channels",
            (latent, 2 * latent, 2 * latent + 1),
            f"{latent}, {2 * latent} for InstructPix2Pix, or {2 * latent + 1} for inpainting",
        ),
        ("cross_attention_dim", (words,), f"the text encoder's {words}"),
        (
            "projection_class_embeddings_input_dim",
            (beside if several else None,),
            f"{beside} for its text encoders",
        ),
    ):
        if getattr(unet, name) not in wanted:
            raise _unfit(unet_file, name, getattr(unet, name), said)
    return Configs(index=index, unet=unet, vae=vae, texts=texts)


def read_index(folder: Path) -> IndexConfig:
    """What a checkpoint says that it is; one without an index is as Stable Diffusion. Raises `ModelError`."""
    path = folder / INDEX_FILE
    return read_config(path, IndexConfig) if path.is_file() else IndexConfig.model_validate({})


def read_words_configs(folder: Path, family: Family) -> tuple[TextConfig, ...]:
    """The text encoders'; the tokenizers' are looked at. Raises `ModelError`."""
    for part in family.tokenizers:
        read_config(folder / part / TOKENIZER_FILE, TokenizerConfig)
    texts = tuple(read_config(folder / part / "config.json", TextConfig) for part in family.text_encoders)
    for part, text in zip(family.text_encoders, texts, strict=True):
        if text.max_position_embeddings != texts[0].max_position_embeddings:
            wanted = f"as many as the first text encoder's, {texts[0].max_position_embeddings}"
            got = text.max_position_embeddings
            raise _unfit(folder / part / "config.json", "max_position_embeddings", got, wanted)
    return texts


def _unfit(path: Path, name: str, got: Any, wanted: str) -> ModelError:
    """The error of a field that does not go with the others."""
    return ModelError(f"{path}: {name}: wanted {wanted}, got {got!r:.80}; give another checkpoint")
