"""The options that commands have in common, with their help; nothing here imports torch."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

METHOD, MODEL, OUTPUT = "Method", "Model", "Output"


class Precision(str, Enum):
    """Of weights and activations; latents are float32 throughout."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


Source = Annotated[str, typer.Argument(help="What the picture shows.", show_default=False)]
Target = Annotated[str, typer.Argument(help="What it shall show.", show_default=False)]
Seed = Annotated[int, typer.Option(help="Of the first noise; it decides the source picture.")]
Steps = Annotated[int, typer.Option(help="Denoising steps.")]
Guidance = Annotated[
    float | None,
    typer.Option(help="Guidance scale; by default what suits the model (7.5 for Stable Diffusion)."),
]
Method = Annotated[
    str,
    typer.Option(
        help="adapedit, prompt-to-prompt, masactrl, sdedit, instruct-pix2pix, or plain: the seed alone.",
        rich_help_panel=METHOD,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KNOB=VALUE",
        help="Any knob of the method; may be repeated. A wrong name lists those that there are.",
        rich_help_panel=METHOD,
    ),
]
Approximate = Annotated[
    list[str] | None,
    typer.Option(
        "--approximate",
        metavar="NAME=VALUE",
        help="Faster, not exact: guidance_until=0.6, solver=dpm++; may be repeated.",
        rich_help_panel=METHOD,
    ),
]
Model = Annotated[
    str,
    typer.Option(
        help="builtin, a folder in the diffusers layout, a bundle, or a hub name.",
        rich_help_panel=MODEL,
        show_default=True,
    ),
]
Runner = Annotated[
    str | None,
    typer.Option(
        help="What executes the model: onnxruntime, tensorrt-rtx, ... for bundles, pytorch or pytorch-compiled "
        "for checkpoints.",
        rich_help_panel=MODEL,
    ),
]
Device = Annotated[
    str, typer.Option(help="auto (a GPU where there is one), cpu, cuda, cuda:1, mps.", rich_help_panel=MODEL)
]
Dtype = Annotated[Precision, typer.Option(help="Of the model's weights.", rich_help_panel=MODEL)]
MaxRows = Annotated[
    int, typer.Option(help="Rows of a UNet call at most: less takes less memory.", rich_help_panel=MODEL)
]
Out = Annotated[
    Path, typer.Option(help="Folder for the results; it is made if need be.", rich_help_panel=OUTPUT)
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object and nothing else.", rich_help_panel=OUTPUT)
]


def _method_option(*names: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=METHOD)


LambdaTau = Annotated[
    float | None, _method_option("--lambda-tau", help="Factor on the words' steps: less frees words earlier.")
]
LambdaS = Annotated[
    float | None,
    _method_option("--lambda-s", help="Weight of the target's maps once a word is free, 0 to 1."),
]
LambdaSpatial = Annotated[
    float | None,
    _method_option("--lambda-spatial", help="Factor on the spatial map: less confines the edit."),
]
AlphaTau = Annotated[
    float | None, _method_option("--alpha-tau", help="What of a map counts as looked at, 0 to 1.")
]
Variant = Annotated[
    str | None, _method_option("--variant", help="paper, or released: the formulas of the authors' code.")
]
TwoPass = Annotated[
    bool | None,
    _method_option(
        "--two-pass/--single-pass", help="Find the words' steps in a pass before the edit, or during it."
    ),
]
NoFwt = Annotated[bool, _method_option("--no-fwt", help="Ablation: hold all words equally long.")]
NoDps = Annotated[bool, _method_option("--no-dps", help="Ablation: let the edit act everywhere.")]
NoMask = Annotated[bool, _method_option("--no-mask", help="Ablation: count all of a map as looked at.")]
CrossReplaceSteps = Annotated[
    float | None,
    _method_option("--cross-replace-steps", help="Share of the steps in which all words are held."),
]
SelfReplaceSteps = Annotated[
    float | None,
    _method_option("--self-replace-steps", help="Share in which self-attention is the source's."),
]
LocalBlend = Annotated[
    list[str] | None,
    _method_option(
        "--local-blend",
        metavar="WORD",
        help="Change nothing away from this word; may be repeated (adapedit, prompt-to-prompt).",
    ),
]
