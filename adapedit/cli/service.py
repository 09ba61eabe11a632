"""The command that serves edits over HTTP. Settings are options of it, which are made only when it is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from adapedit.cli import options as o

SETTINGS = "Settings: as NAME in the file and ADAPEDIT_NAME in the environment, too"


class ServeCommand(TyperCommand):
    """A command that has an option for each setting, too."""

    def get_params(self, ctx: Any) -> list[Any]:
        from adapedit.http import require

        require("serve", "fastapi", "uvicorn", "pydantic_settings", "prometheus_client", "python_multipart")
        from adapedit.http.settings import Settings

        def settings(**_: Any) -> None: ...

        kinds: dict[str, Any] = {}
        for name, field in Settings.model_fields.items():
            flag, help, default = f"--{name.replace('_', '-')}", field.description or "", field.default
            if field.annotation is bool:
                kinds[name] = Annotated[bool | None, o.option(help, flag, panel=SETTINGS)]
            elif name != "models":
                shown = default.human_readable() if hasattr(default, "human_readable") else default
                help = help if default is None else f"{help} By default {shown}."
                kinds[name] = Annotated[str | None, o.option(help, flag, panel=SETTINGS, metavar="VALUE")]
        keyword, settings.__annotations__ = inspect.Parameter.KEYWORD_ONLY, kinds
        settings.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(name, keyword, default=None, annotation=kind) for name, kind in kinds.items()]
        )
        app = typer.Typer(add_completion=False)
        app.command()(settings)
        return [*typer.main.get_command(app).params, *super().get_params(ctx)]

    def invoke(self, ctx: Any) -> Any:
        own = {parameter.name for parameter in self.params}
        ctx.obj = {name: ctx.params.pop(name) for name in set(ctx.params) - own}
        return super().invoke(ctx)


def serve(
    ctx: typer.Context,
    *,
    model: Annotated[
        o.Texts,
        o.option(
            "builtin, a folder, a .safetensors file, a bundle or a hub name, or NAME=one of these; may be repeated.",
            panel=o.MODEL,
        ),
    ] = None,
    runner: Annotated[o.Text, o.option("What executes the models.", panel=o.MODEL)] = None,
    device: Annotated[o.Text, o.option("auto, cpu, cuda, cuda:1, mps.", panel=o.MODEL)] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None, o.option("Of weights.", panel=o.MODEL)
    ] = None,
    weights_variant: Annotated[
        o.Text, o.option("The word in the names of weight files, such as fp16.", panel=o.MODEL)
    ] = None,
    config: Annotated[
        Path | None,
        o.option("Of single files: a folder with their configurations and tokenizers.", panel=o.MODEL),
    ] = None,
    settings: Annotated[
        Path | None, o.option("A TOML file of settings; flags and ADAPEDIT_… go before it.", metavar="FILE")
    ] = None,
    make_key: Annotated[
        o.Text, o.option("Print a fresh key and its line for the file of keys, and end.", metavar="NAME")
    ] = None,
) -> None:
    """Serve edits over HTTP: jobs that outlive the process, OpenAI's image routes, metrics."""
    from adapedit.http.limits import Keys
    from adapedit.http.settings import ModelSource, Settings

    if make_key is not None:
        print(*Keys.make(make_key), sep="\n")
        return
    flags = {name: value for name, value in ctx.obj.items() if value is not None}
    if model:
        more: dict[str, Any] = {"runner": runner, "device": None if device == "auto" else device}
        more |= {"dtype": dtype, "variant": weights_variant, "config": config}
        flags["models"] = [ModelSource.named(text, **more) for text in model]
    found = Settings.read(settings, flags)
    from adapedit.http.process import run

    run(found, lambda: Settings.read(settings, flags))


COMMANDS: dict[Callable[..., None], tuple[str, ...]] = {
    serve: (
        "adapedit serve --model ./stable-diffusion-v1-4 --port 8000",
        "adapedit serve --host 0.0.0.0 --keys keys.txt --model bundle --runner onnxruntime",
    ),
}
"""Commands with the examples at the end of their help."""
