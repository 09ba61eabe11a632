"""The options that commands have in common, with their help; nothing here imports torch."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

METHOD, MODEL, OUTPUT, PICTURE = "Method", "Model", "Output", "Real picture"


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "\n\n".join(["[dim]Examples:[/dim]", *lines])


def _option(*names: str, panel: str = METHOD, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **more)


def _print_version(wanted: bool) -> None:
    if wanted:
        from adapedit import __version__

        print(f"adapedit {__version__}")
        raise typer.Exit


def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """What holds for all commands."""


class Precision(str, Enum):
    """Of weights and activations; latents are float32 throughout."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Fit(str, Enum):
    """How a picture is brought to the model's size."""

    crop = "crop"
    pad = "pad"
    stretch = "stretch"


Source = Annotated[str, typer.Argument(help="What the picture shows.", show_default=False)]
Target = Annotated[str, typer.Argument(help="What it shall show.", show_default=False)]
Seed = Annotated[int, typer.Option(help="Of the first noise; it decides the source picture.")]
Steps = Annotated[int, typer.Option("--steps", "--num-inference-steps", help="Denoising steps.")]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance",
        "--guidance-scale",
        help="Guidance scale; by default what suits the model (7.5 for Stable Diffusion).",
    ),
]
Method = Annotated[
    str,
    _option(help="adapedit, prompt-to-prompt, masactrl, sdedit, instruct-pix2pix, or plain: the seed alone."),
]
Set = Annotated[
    list[str] | None,
    _option(
        "--set",
        metavar="KNOB=VALUE",
        help="Any knob of the method; may be repeated. A wrong name lists those that there are.",
    ),
]
Approximate = Annotated[
    list[str] | None,
    _option(
        "--approximate",
        metavar="NAME=VALUE",
        help="Faster, not exact: guidance_until=0.6, solver=dpm++; may be repeated.",
    ),
]
Model = Annotated[
    str, _option(panel=MODEL, help="builtin, a folder in the diffusers layout, a bundle, or a hub name.")
]
Runner = Annotated[
    str | None,
    _option(
        panel=MODEL,
        help="What executes the model: onnxruntime, tensorrt-rtx, ... for bundles, pytorch or pytorch-compiled "
        "for checkpoints.",
    ),
]
Device = Annotated[str, _option(panel=MODEL, help="auto (a GPU where there is one), cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[
    Precision | None, _option(panel=MODEL, help="Of a checkpoint's weights; by default float32.")
]
MaxRows = Annotated[int, _option(panel=MODEL, help="Rows of a call at most: less takes less memory.", min=1)]
Out = Annotated[Path, _option(panel=OUTPUT, help="Folder for the results; it is made if need be.")]
Json = Annotated[bool, _option("--json", panel=OUTPUT, help="Print one JSON object and nothing else.")]
Image = Annotated[
    Path | None,
    _option(
        "--image",
        panel=PICTURE,
        metavar="FILE",
        help="A real picture to edit, which SOURCE describes.",
        show_default=False,
    ),
]
HowToFit = Annotated[
    Fit, _option("--fit", panel=PICTURE, help="To the model's size: its middle, white bars, or stretched.")
]
Inversion = Annotated[
    str | None,
    _option(
        panel=PICTURE, help="ddim, null-text, direct or edit-friendly; by default direct.", show_default=False
    ),
]
InversionSet = Annotated[
    list[str] | None,
    _option(
        "--inversion-set",
        panel=PICTURE,
        metavar="KNOB=VALUE",
        help="Any knob of the inversion, such as skip=0.5 of edit-friendly; may be repeated.",
    ),
]
LambdaTau = Annotated[float | None, _option(help="Factor on the words' steps: less frees words earlier.")]
LambdaS = Annotated[float | None, _option(help="Weight of the target's maps once a word is free, 0 to 1.")]
LambdaSpatial = Annotated[float | None, _option(help="Factor on the spatial map: less confines the edit.")]
AlphaTau = Annotated[float | None, _option(help="What of a map counts as looked at, 0 to 1.")]
Variant = Annotated[str | None, _option(help="paper, or released: the formulas of the authors' code.")]
TwoPass = Annotated[
    bool | None,
    _option(
        "--two-pass/--single-pass",
        help="Find the words' steps in a pass before the edit, or during it (default).",
    ),
]
NoFwt = Annotated[bool, _option("--no-fwt", help="Ablation: hold all words equally long.")]
NoDps = Annotated[bool, _option("--no-dps", help="Ablation: let the edit act everywhere.")]
NoMask = Annotated[bool, _option("--no-mask", help="Ablation: count all of a map as looked at.")]
CrossReplaceSteps = Annotated[float | None, _option(help="Share of the steps in which all words are held.")]
SelfReplaceSteps = Annotated[float | None, _option(help="Share in which self-attention is the source's.")]
LocalBlend = Annotated[
    list[str] | None,
    _option(
        metavar="WORD",
        help="Change nothing away from this word; may be repeated (adapedit, prompt-to-prompt).",
    ),
]
