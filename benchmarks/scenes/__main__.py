"""The stages that make the reader and the built-in model: `python -m benchmarks.scenes STAGE`, or `train` for all.

Each stage resumes where it was stopped.
"""

from __future__ import annotations

import typer

from benchmarks.scenes.dataset import OUT, draw_scenes
from benchmarks.scenes.evaluate import evaluate
from benchmarks.scenes.generator import publish, train_generator
from benchmarks.scenes.reader import train_reader
from benchmarks.scenes.vae import train_vae

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
app.command("draw")(draw_scenes)
app.command("vae")(train_vae)
app.command("reader")(train_reader)
app.command("generator")(train_generator)
app.command("publish")(publish)
app.command("evaluate")(evaluate)


@app.command()
def train(device: str = "cpu", workers: int = 2, batch: int = 32, steps: int = 12000) -> None:
    """All stages in order: hours of work, or with --device cuda --workers 16 --batch 256 --steps 3000 minutes."""
    draw_scenes(workers=workers)
    train_vae(device=device)
    train_generator(device=device, batch=batch, steps=steps)
    train_vae(out=OUT / "decoder", steps=1200, start=OUT / "vae", decoder_only=True, device=device)
    train_reader()
    publish(vae=OUT / "decoder")
    evaluate()


if __name__ == "__main__":
    app()
