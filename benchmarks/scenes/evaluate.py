"""How good is a generator of the scene world? What the reader sees, where the words look, and a contact sheet."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import mannwhitneyu

from adapedit import AdapEditPipeline, EditRequest
from adapedit.sheets import Cell, sheet
from benchmarks.scenes.dataset import HELD_OUT_SEED, OUT, grid_masks, held_out, scene_at, to_pixels
from benchmarks.scenes.drawing import render
from benchmarks.scenes.reader import WELL_DRAWN, Reader, distance, fit_scene, load_reader
from benchmarks.scenes.world import FIGURE_ATTRIBUTES, Caption, Scene, caption, random_caption


def unseen(count: int) -> list[tuple[Scene, Caption]]:
    """Scenes whose combination of attributes was never trained on; every other caption names all, the rest is open."""
    scenes = ((index, scene_at(index, HELD_OUT_SEED)) for index in itertools.count())
    chosen: list[tuple[Scene, Caption]] = []
    for index, scene in itertools.islice(((i, s) for i, s in scenes if held_out(s)), count):
        words = caption(scene)
        if len(chosen) % 2:
            words = random_caption(scene, np.random.default_rng((HELD_OUT_SEED, index, 1)))
        chosen.append((scene, words))
    return chosen


def generate(
    pipe: AdapEditPipeline, prompts: Sequence[str], steps: int, guidance_scale: float | None, batch: int = 8
) -> list[Image.Image]:
    """A picture for each prompt, number i from seed i."""
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), batch):
        requests = [
            EditRequest.make(
                source_prompt=prompt, target_prompt=prompt, seed=start + place,
                num_inference_steps=steps, guidance_scale=guidance_scale, method="plain",
            )
            for place, prompt in enumerate(prompts[start : start + batch])
        ]  # fmt: skip
        pictures += [result.source_image for result in pipe.edit_batch(requests)]
    return pictures


def picture_report(
    reader: Reader, pictures: Sequence[Image.Image], scenes: Sequence[Scene]
) -> dict[str, dict[str, float]]:
    """Shares of pictures: where the reader sees what the prompt says, per attribute, per word and all; well drawn."""
    right: dict[str, list[bool]] = defaultdict(list)
    of_words: dict[str, list[bool]] = defaultdict(list)
    images = np.stack([np.asarray(picture) for picture in pictures])
    for image, seen, scene in zip(images, reader.read(to_pixels(images)), scenes, strict=True):
        right["well drawn"].append(distance(image, render(fit_scene(image, seen)).image) <= WELL_DRAWN)
        right["count"].append(len(seen.figures) == len(scene.figures))
        pairs = [("place", seen.place, scene.place)]
        for figure, other in itertools.zip_longest(scene.figures, seen.figures[: len(scene.figures)]):
            pairs += [(name, getattr(other, name, ""), getattr(figure, name)) for name in FIGURE_ATTRIBUTES]
        for name, found, wanted in pairs:
            right[name].append(found == wanted)
            of_words[wanted].append(found == wanted)
        right["everything"].append(right["count"][-1] and all(found == wanted for _, found, wanted in pairs))
    return {
        kind: {name: float(np.mean(values)) for name, values in shares.items()}
        for kind, shares in (("pictures", right), ("words", of_words))
    }


@torch.inference_mode()
def looking(model: Any, count: int, batch: int = 10) -> dict[str, float]:
    """Area under the ROC curve of words' maps against masks, on held-out drawings noised to the middle of the schedule.

    Figure words against their own figure; the place's word against all that is no figure. 0.5 is chance.
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
        inputs = {
            "sample": model.scheduler.add_noise(latents, noise, torch.tensor(step)),
            "timestep": torch.full((len(part),), step),
        }
        texts = [words.text for _, words in part]
        ids = model.tokenizer(texts, padding="max_length", max_length=model.max_tokens, return_tensors="pt")
        with model.runner as runner:
            outputs = runner.infer(
                {**inputs, **runner.condition(model.encode_ids(ids.input_ids[None])["hidden_states"])}
            )
        maps = outputs["cross_attention_maps"].numpy()
        for row, (_, words) in enumerate(part):
            masks = grid_masks(pictures[row].masks).reshape(2, -1) > 127
            for position, word in enumerate(words.words, start=1):
                if word.role != "function":
                    area = ~masks.any(0) if word.figure is None else masks[word.figure]
                    scores[word.role].append(area_under_curve(maps[row, :, position], area))
    return {role: float(np.nanmean(values)) for role, values in scores.items()}


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a place inside scores higher than one outside, ties counting half; NaN where one is empty."""
    inside, outside = scores[positive], scores[~positive]
    if not inside.size or not outside.size:
        return float("nan")
    return float(mannwhitneyu(inside, outside).statistic / (inside.size * outside.size))


def evaluate(
    model: str = "builtin",
    count: int = 500,
    maps: int = 200,
    steps: int = 50,
    guidance_scale: float | None = None,
    out: Path = OUT / "evaluation",
) -> None:
    """Write report.json and contact_sheet.png of a model into `out`."""
    pipe = AdapEditPipeline.from_pretrained(model)
    chosen = unseen(count)
    prompts = [words.text for _, words in chosen]
    pictures = generate(pipe, prompts, steps, guidance_scale)
    report: dict[str, Any] = {
        "model": model,
        "prompts": count,
        "steps": steps,
        "guidance_scale": guidance_scale,
    }
    report |= picture_report(load_reader(), pictures, [scene for scene, _ in chosen])
    report["map_auc"] = looking(pipe.model, maps)
    out.mkdir(parents=True, exist_ok=True)
    cells = [Cell(picture, prompt) for picture, prompt in zip(pictures[:48], prompts, strict=False)]
    sheet([("", cells)], columns=8).save(out / "contact_sheet.png")
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
