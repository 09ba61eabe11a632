"""The source of an edit is the picture of diffusers' own pipeline, family by family: the table of docs/models.md.

`python -m tests.adapedit.test_as_diffusers` prints the table.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image
from torch import Tensor

from adapedit import AdapEditPipeline, EditRequest
from tests.helpers.edits import SOURCE, TARGET
from tests.helpers.methods import plan_of, run
from tests.helpers.single_file import save_single_file
from tests.helpers.tiny_model import STABLE_DIFFUSION_2, XL_SCHEDULER, save_tiny_model, save_tiny_xl

LIMIT = 1e-4
STEPS, SEED, GUIDANCE = 4, 3, 2.0
NEGATIVE = "a cat on the grass"
DOCS = Path(__file__).parents[2] / "docs" / "models.md"
WAYS = ((False, False), (True, False), (False, True), (True, True))
"""With a mask, and with a negative prompt."""

Pair = tuple[AdapEditPipeline, Any]


def _theirs(kind: Any, folder: Path, ours: AdapEditPipeline) -> Any:
    """Diffusers' own pipeline of a folder, under the scheduler of ours."""
    theirs = kind.from_pretrained(folder)
    theirs.scheduler = type(ours.scheduler).from_config(ours.scheduler.config)
    return theirs


def _folder(*, unet: dict[str, Any] | None = None, **scheduler: Any) -> Callable[[Path], Pair]:
    def make(at: Path) -> Pair:
        folder = save_tiny_model(at, unet=unet, **scheduler)
        ours = AdapEditPipeline.from_pretrained(folder)
        return ours, _theirs(StableDiffusionPipeline, folder, ours)

    return make


def _xl(scheduler: Any = None) -> Callable[[Path], Pair]:
    def make(at: Path) -> Pair:
        folder = save_tiny_xl(at)
        ours = AdapEditPipeline.from_pretrained(folder, scheduler=scheduler)
        return ours, _theirs(StableDiffusionXLPipeline, folder, ours)

    return make


def _single_file(save: Callable[..., Path], kind: Any, **more: Any) -> Callable[[Path], Pair]:
    def make(at: Path) -> Pair:
        folder = save(at / "folder", **more)
        file = save_single_file(AdapEditPipeline.from_pretrained(folder).components, at / "model.safetensors")
        ours = AdapEditPipeline.from_single_file(file, config=folder)
        theirs = kind.from_single_file(str(file), config=str(folder), local_files_only=True)
        theirs.scheduler = type(ours.scheduler).from_config(ours.scheduler.config)
        return ours, theirs

    return make


def _in_hand(save: Callable[..., Path], kind: Any) -> Callable[[Path], Pair]:
    def make(at: Path) -> Pair:
        theirs = kind.from_pretrained(save(at))
        theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config, clip_sample=False)
        return AdapEditPipeline.from_pipe(theirs), theirs

    return make


def _inpainting(at: Path) -> Pair:
    folder = save_tiny_model(at, unet={"in_channels": 9})
    ours = AdapEditPipeline.from_pretrained(folder)
    return ours, StableDiffusionInpaintPipeline(**ours.components, requires_safety_checker=False)


@dataclass(frozen=True, kw_only=True)
class Family:
    """make: both pipelines of a checkpoint, made in a folder. guided: whether it is run under guidance."""

    make: Callable[[Path], Pair]
    guided: bool = True
    inpaints: bool = False


VELOCITY: dict[str, Any] = {"prediction_type": "v_prediction"}
FAMILIES = {
    "Stable Diffusion 1.x": Family(make=_folder()),
    "2.x, epsilon": Family(make=_folder(unet=STABLE_DIFFUSION_2)),
    "2.x, velocity": Family(make=_folder(unet=STABLE_DIFFUSION_2, **VELOCITY)),
    "2.x, velocity, zero terminal SNR": Family(
        make=_folder(unet=STABLE_DIFFUSION_2, **VELOCITY, rescale_betas_zero_snr=True)
    ),
    "SDXL": Family(make=_xl()),
    "SDXL Turbo: Euler ancestral, no guidance": Family(
        make=_xl(EulerAncestralDiscreteScheduler(**XL_SCHEDULER)), guided=False
    ),
    "SDXL Lightning: Euler, no guidance": Family(
        make=_xl(EulerDiscreteScheduler(**XL_SCHEDULER)), guided=False
    ),
    "inpainting, nine channels": Family(make=_inpainting, inpaints=True),
    "single file, 1.x": Family(make=_single_file(save_tiny_model, StableDiffusionPipeline)),
    "single file, SDXL": Family(make=_single_file(save_tiny_xl, StableDiffusionXLPipeline, layers=10)),
    "from_pipe, 1.x": Family(make=_in_hand(save_tiny_model, StableDiffusionPipeline)),
    "from_pipe, SDXL": Family(make=_in_hand(save_tiny_xl, StableDiffusionXLPipeline)),
}


def difference(family: Family, pair: Pair, *, mask: bool, negative: bool) -> float | None:
    """The largest of the source's latents after all steps; None: there is no such edit."""
    if (negative and not family.guided) or (family.inpaints and not mask):
        return None
    ours, theirs = pair
    theirs.set_progress_bar_config(disable=True)
    side = ours.model.side
    options: dict[str, Any] = {
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE if family.guided else 0.0,
        **({"negative_prompt": NEGATIVE} if negative else {}),
    }
    white = np.zeros((side, side), np.uint8)
    white[:, : side // 2] = 255
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    given = {"mask": white} if mask else {}
    if family.inpaints:
        given["image"] = picture
    asked = EditRequest.make(source_prompt=SOURCE, target_prompt=TARGET, seed=SEED, **options, **given)
    plan = plan_of(ours, asked)
    wanted: dict[str, Any] = {"generator": torch.Generator().manual_seed(SEED)}
    if family.inpaints:  # from noise, as diffusers does, and not from the picture's inversion
        plan = replace(plan, latents=_drawn(ours).expand_as(plan.latents).clone(), source_latents=None)
        channels = plan.conditioning["channels"][:1, 0]
        wanted = {"latents": _drawn(ours), "masked_image_latents": channels[:, 1:], "strength": 1.0}
        wanted |= {"image": Image.fromarray(picture), "mask_image": Image.fromarray(white)}
        wanted |= {"height": side, "width": side}
    (outcome,) = run(ours, [plan])
    made: Tensor = theirs(SOURCE, output_type="latent", **options, **wanted).images
    assert not torch.equal(outcome.latents[0], outcome.latents[1])
    return float((outcome.latents[:1] - made).abs().max())


def _drawn(ours: AdapEditPipeline) -> Tensor:
    specs, side = ours.model.runner.specs, ours.model.latent_size
    return torch.randn(1, specs.out_channels, side, side, generator=torch.Generator().manual_seed(SEED))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_source_is_what_diffusers_makes(name, tmp_path):
    pair = FAMILIES[name].make(tmp_path)
    found = [difference(FAMILIES[name], pair, mask=mask, negative=negative) for mask, negative in WAYS]
    assert any(value is not None for value in found)
    assert all(value is None or value <= LIMIT for value in found), found


def test_a_family_that_is_run_otherwise_is_found(tmp_path):
    ours, theirs = FAMILIES["2.x, velocity"].make(tmp_path)
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config, prediction_type="epsilon")
    found = difference(FAMILIES["2.x, velocity"], (ours, theirs), mask=False, negative=False)
    assert found is not None and found > 100 * LIMIT


def test_the_docs_have_every_family_and_no_figure_over_the_limit():
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", DOCS.read_text(), re.M)
    figures = {name.strip(): values for name, *values in rows if name.strip() in FAMILIES}
    assert list(figures) == list(FAMILIES)
    for values in figures.values():
        assert all(value.strip() == "—" or float(value) <= LIMIT for value in values)


def main() -> None:
    print("| latents, largest difference | | mask | negative prompt | both |\n|---|---|---|---|---|")
    for name, family in FAMILIES.items():
        with tempfile.TemporaryDirectory() as folder:
            pair = family.make(Path(folder))
            found = [difference(family, pair, mask=mask, negative=negative) for mask, negative in WAYS]
        print(f"| {name} | {' | '.join('—' if value is None else f'{value:.1e}' for value in found)} |")


if __name__ == "__main__":
    main()
