"""Options for real pictures, and `adapedit invert`; nothing here imports torch."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from adapedit.cli import options as o

PICTURE = "Real picture"

EXAMPLES = (
    'adapedit invert --image dog.png --prompt "a red dog standing on the grass"',
    'adapedit invert --image dog.png --prompt "a red dog" --inversions ddim,direct --steps 30 --json',
)


class Fit(str, Enum):
    """How a picture is brought to the model's size."""

    crop = "crop"
    pad = "pad"
    stretch = "stretch"


ImageFile = Annotated[
    Path | None,
    typer.Option(
        "--image",
        metavar="FILE",
        help="A real picture to edit, which SOURCE describes.",
        rich_help_panel=PICTURE,
        show_default=False,
    ),
]
HowToFit = Annotated[
    Fit,
    typer.Option(
        "--fit", help="To the model's size: its middle, white bars, or stretched.", rich_help_panel=PICTURE
    ),
]
Inversion = Annotated[
    str | None,
    typer.Option(
        help="ddim, null-text, direct or edit-friendly; by default direct.",
        rich_help_panel=PICTURE,
        show_default=False,
    ),
]
InversionSet = Annotated[
    list[str] | None,
    typer.Option(
        "--inversion-set",
        metavar="KNOB=VALUE",
        help="Any knob of the inversion, such as skip=0.5 of edit-friendly; may be repeated.",
        rich_help_panel=PICTURE,
    ),
]


def fields(
    image: Path | None,
    fit: Fit,
    inversion: str | None,
    assignments: list[str] | None,
    method: str | None = None,
) -> dict[str, Any]:
    """What a request has of these options. method: the one that runs, where it is one."""
    from adapedit_kernels.errors import AdapEditError

    if image is None:
        if inversion is not None or assignments:
            raise AdapEditError("--inversion wants a picture; give one with --image")
        return {}
    if inversion is not None or assignments:
        _refuse_uninverted(method)
    return {"image": {"file": str(image), "fit": fit.value}, "inversion": settings(inversion, assignments)}


def _refuse_uninverted(method: str | None) -> None:
    """Raise for a method that edits the picture without leading back to it: an inversion would be ignored."""
    from adapedit.methods import METHODS
    from adapedit_kernels.errors import AdapEditError

    if method in METHODS and not METHODS[method].inverts:
        raise AdapEditError(f"{method} edits a picture without inverting it; leave --inversion out")


def settings(inversion: str | None, assignments: list[str] | None) -> Any:
    """Settings of an inversion; None where nothing was said of it."""
    from adapedit.cli.knobs import parse
    from adapedit.inversion import make_inversion_settings

    if inversion is None and not assignments:
        return None
    return make_inversion_settings(inversion or "direct", **parse(assignments))


def invert(
    image: Annotated[Path, typer.Option(metavar="FILE", help="A picture.", show_default=False)],
    prompt: Annotated[str, typer.Option(help="What it shows.", show_default=False)],
    inversions: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME", help="By default all that the model can run.", show_default=False),
    ] = None,
    fit: HowToFit = Fit.crop,
    seed: o.Seed = 0,
    steps: o.Steps = 50,
    guidance: o.Guidance = None,
    model: o.Model = "builtin",
    runner: o.Runner = None,
    device: o.Device = "auto",
    dtype: o.Dtype = o.Precision.float32,
    out: o.Out = Path("out"),
    json: o.Json = False,
) -> None:
    """How well a picture comes back from each inversion without an edit: writes invert.png and invert.json."""
    from adapedit.bundle import is_bundle
    from adapedit.images import open_image, read_file
    from adapedit.inversion import INVERSIONS, make_inversion_settings
    from adapedit.result import check_output

    names = [name.strip() for name in inversions.split(",")] if inversions else list(INVERSIONS)
    if not inversions and is_bundle(model):
        names.remove("null-text")
        print("adapedit: null-text needs gradients, which a bundle does not have: left out", file=sys.stderr)
    chosen = {name: make_inversion_settings(name) for name in names}
    open_image(read_file(image), size=(64, 64), name=str(image))
    check_output(out)
    from adapedit.cli import invert_show

    invert_show.run(
        image,
        prompt,
        chosen,
        out=out,
        json=json,
        load={"model": model, "runner": runner, "device": device, "dtype": dtype.value},
        num_inference_steps=steps,
        guidance_scale=guidance,
        seed=seed,
        fit=fit.value,
    )
