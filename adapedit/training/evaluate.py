"""How good is a generator of the scene world? What the reader sees, where the words look, and a contact sheet."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adapedit.metrics.looking import area_under_curve
from adapedit.model import EditModel, load_model
from adapedit.scenes.captions import Caption, Mention, caption
from adapedit.scenes.reader import Reader, load_reader
from adapedit.scenes.render import render
from adapedit.scenes.world import FIGURE_ATTRIBUTES, Scene
from adapedit.sheets import Cell, sheet
from adapedit.training.data import HELD_OUT_SEED, grid_masks, held_out, scene_at
from adapedit.training.reader import to_pixels
from adapedit_engine.denoising import denoise
from adapedit_engine.plan import EditPlan
from adapedit_engine.schedule import Schedule


def unseen(count: int) -> list[tuple[Scene, Caption]]:
    """Scenes whose combination of attributes was never trained on, with captions that name all of them."""
    chosen: list[tuple[Scene, Caption]] = []
    index = 0
    while len(chosen) < count:
        scene = scene_at(index, HELD_OUT_SEED)
        if held_out(scene):
            pose = "before" if index % 2 else "after"
            chosen.append((scene, caption(scene, tuple(Mention(pose=pose) for _ in scene.figures))))
        index += 1
    return chosen


def generate(model: EditModel, prompts: list[str], steps: int, guidance: float, batch: int = 8) -> Tensor:
    """Pictures [n, 3, S, S] float32 in -1..1, prompt i from seed i."""
    schedule = Schedule.from_scheduler(model.scheduler, steps)
    ids = model.tokenizer(
        ["", *prompts], padding="max_length", max_length=model.max_tokens, return_tensors="pt"
    ).input_ids
    hidden = model.encode_ids(ids)
    pictures = []
    for start in range(0, len(prompts), batch):
        chosen = range(start, min(start + batch, len(prompts)))
        shape = (1, model.runner.specs.out_channels, model.latent_size, model.latent_size)
        plan = EditPlan(
            schedule=schedule,
            latents=torch.cat(
                [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in chosen]
            ),
            encoder_hidden_states=torch.stack([torch.stack([hidden[0], hidden[1 + i]]) for i in chosen]),
            guidance_weights=torch.tensor([1 - guidance, guidance]).expand(len(chosen), 2),
        )
        with model.runner as runner:
            (outcome,) = denoise([plan], runner)
        pictures.append(model.decode(outcome.latents) * 2 - 1)
    return torch.cat(pictures)


def reader_accuracy(reader: Reader, pixels: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Share of pictures in which the reader sees what the prompt says, per attribute, and of all at once."""
    right: dict[str, list[bool]] = defaultdict(list)
    for (figures, place), scene in zip(reader.read(pixels), scenes, strict=True):
        right["count"].append(len(figures) == len(scene.figures))
        right["place"].append(place == scene.place)
        for slot, figure in enumerate(scene.figures):
            seen = figures[slot] if slot < len(figures) else None
            for name in FIGURE_ATTRIBUTES:
                right[name].append(seen is not None and getattr(seen, name) == getattr(figure, name))
        right["everything"].append(figures == scene.figures and place == scene.place)
    return {name: float(np.mean(values)) for name, values in right.items()}


@torch.inference_mode()
def looking(model: EditModel, count: int, batch: int = 10) -> dict[str, float]:
    """AUC of the words' maps against the masks, on held-out rendered scenes noised to the middle of the schedule.

    Figure words against their own figure; the place's word against all that is no figure.
    """
    scenes = unseen(count)
    step = model.scheduler.config.num_train_timesteps // 2
    scores: dict[str, list[float]] = defaultdict(list)
    for start in range(0, count, batch):
        part = scenes[start : start + batch]
        pictures = [render(scene) for scene, _ in part]
        pixels = to_pixels(np.stack([picture.image for picture in pictures]))
        latents = model.vae.encode(pixels).latent_dist.mean * model.vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(start))
        noisy = model.scheduler.add_noise(latents, noise, torch.tensor(step))
        texts = [words.text for _, words in part]
        ids = model.tokenizer(
            texts, padding="max_length", max_length=model.max_tokens, return_tensors="pt"
        ).input_ids
        with model.runner as runner:
            inputs = {"sample": noisy, "timestep": torch.full((len(part),), step)}
            maps = runner.infer({**inputs, **runner.condition(model.encode_ids(ids))})[
                "cross_attention_maps"
            ].numpy()
        for row, (_, words) in enumerate(part):
            masks = grid_masks(pictures[row].masks).reshape(2, -1) > 127
            for position, word in enumerate(words.words, start=1):
                if word.role != "function":
                    area = np.asarray(~masks.any(0) if word.figure is None else masks[word.figure])
                    scores[word.role].append(area_under_curve(maps[row, :, position], area))
    return {role: float(np.nanmean(values)) for role, values in scores.items()}


def contact_sheet(pixels: Tensor, prompts: list[str], columns: int = 8) -> Image.Image:
    """Generated pictures with their prompts, 8 to a row."""
    arrays = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    cells = [
        Cell(Image.fromarray(array), prompt[:26], prompt[26:56])
        for array, prompt in zip(arrays, prompts, strict=True)
    ]
    return sheet([("", cells)], columns=columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--maps", type=int, default=200)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--out", type=Path, default=Path("out/training/evaluation"))
    args = parser.parse_args()
    model = load_model(args.model)
    guidance = model.facts.guidance_scale if args.guidance is None else args.guidance
    chosen = unseen(args.count)
    prompts = [words.text for _, words in chosen]
    pixels = generate(model, prompts, args.steps, guidance)
    report: dict[str, Any] = {
        "model": args.model,
        "prompts": args.count,
        "steps": args.steps,
        "guidance_scale": guidance,
        "reader_accuracy": reader_accuracy(load_reader(), pixels, [scene for scene, _ in chosen]),
        "map_auc": looking(model, args.maps),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    contact_sheet(pixels[:48], prompts[:48]).save(args.out / "contact_sheet.png")
    (args.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
