"""`adapedit invert` behind its options: the run, the table, the sheet and the file."""

from __future__ import annotations

import json as encoder
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adapedit.cli.bundle_show import status
from adapedit.result import OutputFolder


def run(
    image: Path,
    prompt: str,
    inversions: Mapping[str, Any],
    *,
    out: Path,
    json: bool,
    load: Mapping[str, Any],
    **options: Any,
) -> None:
    """Invert, measure and show."""
    with status("Loading the model") as say:
        import torch

        from adapedit.bundle import load_any
        from adapedit.images import open_image, read_file
        from adapedit.inversion.reconstruct import reconstruct
        from adapedit.sheets import Cell, Heading, sheet

        device = load["device"]
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model = load_any(
            load["model"], runner=load["runner"], device=device, torch_dtype=getattr(torch, load["dtype"])
        )
        (found,) = reconstruct(model, [(image, prompt)], inversions=inversions, callback=say, **options)
    size = found[0].picture.size
    opened = open_image(read_file(image), size=size, fit=options["fit"], name=str(image))
    rows = [
        {"inversion": one.inversion, "psnr": one.psnr, "ssim": one.ssim, "latent_rmse": one.latent_rmse}
        | {"seconds": round(one.seconds, 3)}
        for one in found
    ]
    about = {
        "image": str(image),
        "notes": list(opened.notes),
        "prompt": prompt,
        "model": model.name,
        **options,
    }
    cells = [Cell(opened.picture, "input")] + [
        Cell(one.picture, one.inversion, f"{one.psnr:.1f} dB, SSIM {one.ssim:.3f}") for one in found
    ]
    words = tuple((word, False) for word in prompt.split())
    with OutputFolder(out) as part:
        cell = 256 if size[0] > 256 else 192
        sheet([("", cells)], headings=[Heading("prompt", words)], columns=3, cell=cell).save(
            part / "invert.png"
        )
        text = encoder.dumps({**about, "reconstructions": rows}, indent=2) + "\n"
        (part / "invert.json").write_text(text, encoding="utf-8")
    if json:
        print(encoder.dumps({**about, "reconstructions": rows, "out": str(out)}, indent=2))
        return
    table = Table(title="Without an edit, against the picture as the model takes it")
    for column in ("", "PSNR dB", "SSIM", "latents RMSE", "seconds"):
        table.add_column(column, justify="left" if not column else "right")
    for one in found:
        table.add_row(
            one.inversion,
            f"{one.psnr:.2f}",
            f"{one.ssim:.4f}",
            f"{one.latent_rmse:.2g}",
            f"{one.seconds:.1f}",
        )
    console = Console()
    console.print(table)
    for note in opened.notes:
        console.print(f"The picture: {note}", style="dim", highlight=False)
    saved = f"Saved invert.png and invert.json in [bold]{escape(str(out))}[/bold]"
    console.print(saved, highlight=False, soft_wrap=True)
