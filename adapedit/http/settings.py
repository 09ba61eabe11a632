"""What the service is told: by flags, by the environment (ADAPEDIT_…), by a TOML file, in this order."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ByteSize, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from adapedit.methods.base import one_line, whole_error
from adapedit_kernels.errors import AdapEditError

MODEL_NAMES = "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Bytes = Annotated[ByteSize, Field(gt=0)]


def _not_empty(models: tuple[Any, ...]) -> tuple[Any, ...]:
    names = [model.name for model in models]
    if not names or len(set(names)) < len(names):
        raise ValueError("models of different names were wanted, at least one")
    return models


class ModelSource(BaseModel):
    """A model to serve. name: what requests call it. source: builtin, a folder, a file, a bundle or a hub name.

    variant, config, tokenizer: see `Source`, the last as a folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=MODEL_NAMES)]
    source: str
    variant: str | None = None
    config: Path | None = None
    tokenizer: Path | None = None
    runner: str | None = None
    device: str | None = None
    dtype: Literal["float32", "float16", "bfloat16"] | None = None

    @classmethod
    def named(cls, text: str, **more: Any) -> dict[str, Any]:
        """NAME=SOURCE, or a source whose last part is the name."""
        name, sign, source = text.partition("=")
        if not sign:
            name, source = Path(text).name or text, text
        return {"name": name, "source": source, **more}


class Settings(BaseSettings):
    """Of `adapedit serve`. models: the first is what a request gets that names none."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="ADAPEDIT_",
        env_nested_delimiter="__",
        use_attribute_docstrings=True,
    )

    models: Annotated[tuple[ModelSource, ...], AfterValidator(_not_empty)] = (
        ModelSource(name="builtin", source="builtin"),
    )
    host: str = "127.0.0.1"
    """Where to listen; other machines want keys, or insecure."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0: any that is free."""
    keys: Path | None = None
    """A file of API keys, see --make-key."""
    insecure: bool = False
    """Let others come without a key."""
    data: Path = Path("out/serve")
    """Folder of the database, of pictures that came, and of results."""
    max_rows: Count = 32
    """Rows of a call at most."""
    budget: Bytes | None = None
    """Memory for edits in flight, such as 8GiB."""
    calibrate: bool = False
    """Measure on CUDA what calls of each number of rows take, keep it in the data, and admit by it."""
    max_pending: Count = 256
    """Edits that may wait for a model; more are 429."""
    quota: Bytes = ByteSize(10 * 2**30)
    """Bytes of all results; beyond them 507."""
    keep: Seconds = 7 * 86400.0
    """Seconds for which results are kept."""
    max_body: Bytes = ByteSize(32 * 2**20)
    """Bytes of a request."""
    max_picture_pixels: Count = 16 * 2**20
    """Of a picture that comes."""
    max_pixels: Count = 2**21
    """Of a picture that is made."""
    max_steps: Count = 200
    """Of an edit."""
    max_text: Count = 2000
    """Characters of a prompt."""
    max_pictures: Annotated[int, Field(ge=1, le=10)] = 10
    """Of one call of OpenAI's routes."""
    body_timeout: Seconds = 60.0
    """Seconds in which a request has to arrive, its headers in a third of it."""
    rate: Annotated[float, Field(gt=0)] = 600.0
    """Edits a minute for each key; without keys, for each address."""
    burst: Count = 100
    """Of those, how many at once."""
    drain: Seconds = 25.0
    """Seconds for what runs, after SIGTERM; what waits is done after the next start."""
    max_attempts: Count = 5
    """Times that an edit is begun before it counts as what killed the server."""
    traces: str | None = None
    """An OpenTelemetry collector (OTLP over HTTP), such as http://127.0.0.1:4318."""

    @model_validator(mode="after")
    def _closed(self) -> Settings:
        if not (self.insecure or self.keys or is_loopback(self.host)):
            raise whole_error(
                f"host is {self.host}, where others can reach it, and there are no keys; give a file by --keys, "
                "or --insecure"
            )
        if self.calibrate and self.budget is None:
            raise whole_error(
                "calibrate measures for a budget, and there is none; give --budget, such as 8GiB"
            )
        return self

    @classmethod
    def settings_customise_sources(  # type: ignore[override]
        cls, settings_cls: type[BaseSettings], **sources: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return sources["init_settings"], sources["env_settings"], TomlConfigSettingsSource(settings_cls)

    @classmethod
    def read(cls, file: Path | None, flags: dict[str, Any]) -> Settings:
        """The settings of a file, the environment and flags. Raises `AdapEditError` in one line."""
        if file is not None and not file.is_file():
            raise AdapEditError(f"there is no settings file {file}; check the path")

        class Filed(cls):  # type: ignore[valid-type, misc]
            model_config = SettingsConfigDict(toml_file=file)

        try:
            return Filed(**flags)
        except ValidationError as error:
            raise AdapEditError(f"settings: {one_line(error)}") from error
        except ValueError as error:  # TOML that is none, or JSON in the environment
            raise AdapEditError(
                f"settings can't be read ({error}); correct {file or 'the environment'}"
            ) from error


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
