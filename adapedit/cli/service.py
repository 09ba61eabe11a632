"""The command that serves edits over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from adapedit.cli import options as o

OPEN = partial(o.option, panel="Who may come")


def serve(
    *,
    settings: Annotated[
        Path | None, o.option("A TOML file of settings; flags and ADAPEDIT_… go before it.", metavar="FILE")
    ] = None,
    host: Annotated[o.Text, OPEN("Where to listen; by default this machine alone.")] = None,
    port: Annotated[int | None, OPEN("By default 8000; 0: any that is free.")] = None,
    keys: Annotated[Path | None, OPEN("A file of API keys, see --make-key.", metavar="FILE")] = None,
    insecure: Annotated[bool, OPEN("Let others come without a key.", "--insecure")] = False,
    make_key: Annotated[
        o.Text, OPEN("Print a fresh key and its line for the file, and end.", "--make-key", metavar="NAME")
    ] = None,
    model: Annotated[
        o.Texts,
        o.option(
            "builtin, a folder, a bundle or a hub name, or NAME=one of these; may be repeated.",
            panel=o.MODEL,
        ),
    ] = None,
    runner: Annotated[o.Text, o.option("What executes the models.", panel=o.MODEL)] = None,
    device: Annotated[o.Text, o.option("auto, cpu, cuda, cuda:1, mps.", panel=o.MODEL)] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None, o.option("Of weights.", panel=o.MODEL)
    ] = None,
    max_rows: Annotated[int | None, o.option("Rows of a call at most.", panel=o.MODEL)] = None,
    budget: Annotated[o.Text, o.option("Memory for edits in flight, such as 8GiB.", panel=o.MODEL)] = None,
    calibrate: Annotated[
        bool, o.option("Measure what calls take, and keep it.", "--calibrate", panel=o.MODEL)
    ] = False,
    data: Annotated[Path | None, o.option("Folder of accepted edits and results.", panel=o.OUTPUT)] = None,
    set_: Annotated[
        o.Texts,
        o.option("Any other setting, such as max_steps=50; may be repeated.", "--set", metavar="NAME=VALUE"),
    ] = None,
) -> None:
    """Serve edits over HTTP: jobs that outlive the process, OpenAI's image routes, metrics."""
    from adapedit.http import require

    require("serve", "fastapi", "uvicorn", "pydantic_settings", "prometheus_client", "python_multipart")
    from adapedit.http.settings import ModelSource, Settings

    if make_key is not None:
        from adapedit.http.limits import Keys

        print(*Keys.make(make_key), sep="\n")
        return
    from adapedit.cli import knobs

    more = {"runner": runner, "device": None if device == "auto" else device, "dtype": dtype}
    flags: dict[str, Any] = {
        "host": host,
        "port": port,
        "keys": keys,
        "insecure": insecure or None,
        "models": [ModelSource.named(text, **more) for text in model] if model else None,
        "max_rows": max_rows,
        "budget": budget,
        "calibrate": calibrate or None,
        "data": data,
    }
    flags = {name: value for name, value in flags.items() if value is not None} | knobs.parse(set_)
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
