"""The judge: did the edit happen, did everything else stay, and is it a drawing at all?

A reader that was trained on drawn pictures only says what the source and the edited picture show. It is compared with
itself: what counts as kept is what it saw in the *source*, so its mistakes fall on all methods alike. An edit scores

    product = success * kept * identity * well drawn * background

all of them 0 or 1 but the background, which is the structural similarity, clipped to 0..1, where nothing may change.
Copying the source has no success; another picture of the same prompt has no background.

Where nothing may change must not depend on the method that is judged, or a method could widen it. For a drawn source
the true scenes say it. For a generated source only the picture is known, but the world is small: the nearest true
drawing of what is read is fitted to it, and the true edit of that scene says what may change. How far pictures are from
their nearest drawings says whether they are well drawn, which a reader can't see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.metrics import structural_similarity
from skimage.morphology import dilation, disk, erosion
from torch import Tensor

from adapedit import AdapEditError
from benchmarks.quality.suite import Case, Change
from benchmarks.scenes.dataset import to_pixels
from benchmarks.scenes.drawing import IMAGE_SIZE, render
from benchmarks.scenes.reader import WELL_DRAWN, distance, fit_scene
from benchmarks.scenes.world import FIGURE_ATTRIBUTES, Scene

MOST_DECIBELS = 60.0
"""PSNR of pictures that do not differ at all: more than any that do."""

MARGIN = 4
"""Pixels around what the true edit changes that may change as well: generated outlines are not drawn with a ruler."""

EDGE = 2
"""Pixels of a figure's rim that do not count as its inside."""

ASIDE, NEARER = 0.05, 0.8
"""By how much a figure may have moved: a share of the image side, and standard deviations of its distance."""


class SceneReader(Protocol):
    """Says what pictures [B, 3, 128, 128] float32 in -1..1 show; of the layouts no more than a start for the fit."""

    def read(self, pixels: Tensor) -> list[Scene]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """A source picture [S, S, 3] uint8 as the judge sees it.

    usable:    false where it is not what its prompt says, or shows the edit already: such a case says nothing about
               any method (one that draws the target prompt right would have changed what it was to keep), and is
               left out for all of them.
    preserved: [S, S] bool, where nothing may change.
    scene:     what is read, where it fits best; well_drawn: and it does.
    truth:     the true edited picture, of drawn sources.
    """

    case: Case
    image: NDArray[np.uint8]
    scene: Scene
    well_drawn: bool
    usable: bool
    preserved: NDArray[np.bool_]
    truth: NDArray[np.uint8] | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one edited picture is worth.

    success:    every changed word is seen where it belongs.
    kept:       every other attribute, the number of figures among them, reads as in the source; kept_share: how many.
    identity:   figures stand where they stood; well_drawn: source and edit are near true drawings.
    psnr, ssim: against the source, where nothing may change; decibels (at most 60), and -1..1.
    moved:      root mean square difference to the source over the whole picture, 0..1.
    truth_psnr, truth_ssim: against the true edited picture, of drawn sources.
    """

    usable: bool
    success: bool
    kept: bool
    kept_share: float
    identity: bool
    well_drawn: bool
    psnr: float
    ssim: float
    moved: float
    truth_psnr: float | None = None
    truth_ssim: float | None = None

    @property
    def background(self) -> float:
        return min(max(self.ssim, 0.0), 1.0)

    @property
    def product(self) -> float:
        return self.success * self.kept * self.identity * self.well_drawn * self.background


@dataclass(frozen=True)
class Judge:
    """Scores edited pictures of the scene world."""

    reader: SceneReader

    def view(self, case: Case, source: Image.Image, *, drawn: bool = False) -> View:
        """Look at a source picture; `drawn`: it is the drawing of `case.source`, so that the truth is known."""
        image = _pixels(source)
        (reading,) = self._read([image])
        scene = fit_scene(image, reading)
        usable = _as_described(reading, case) and not any(_seen(reading, case))
        known = case.source if drawn else scene
        return View(
            case=case,
            image=image,
            scene=scene,
            well_drawn=distance(image, render(scene).image) <= WELL_DRAWN,
            usable=usable,
            preserved=preserved_region(known, case.changes) if usable else np.ones(image.shape[:2], bool),
            truth=render(case.target).image if drawn else None,
        )

    def verdicts(self, view: View, edited: Sequence[Image.Image]) -> list[Verdict]:
        """Judge edits of one source."""
        images = [_pixels(picture) for picture in edited]
        return [
            _verdict(view, image, reading) for image, reading in zip(images, self._read(images), strict=True)
        ]

    def _read(self, images: Sequence[NDArray[np.uint8]]) -> list[Scene]:
        if not images:
            return []
        return self.reader.read(to_pixels(np.stack(images)))


def preserved_region(source: Scene, changes: Sequence[Change], size: int = IMAGE_SIZE) -> NDArray[np.bool_]:
    """[S, S] bool: the pixels that an edit of this scene must leave alone.

    Where the place stays: all but what the true edit changes (the edited figures before and after, their shadows),
    with a margin. Where the place changes: the inside of the figures that are not edited.
    """
    target = source
    for change in changes:
        target = target.edited(change.attribute, change.after, change.figure or 0)
    before, after = render(source, size), render(target, size)
    edited = [change.figure for change in changes if change.figure is not None]
    touched = np.zeros((size, size), dtype=bool)
    for figure in edited:
        touched |= (before.masks[figure] > 0) | (after.masks[figure] > 0)
    if source.place == target.place:
        return ~dilation(touched | (before.image != after.image).any(2), disk(MARGIN))
    inside = np.zeros((size, size), dtype=bool)
    for figure, mask in enumerate(before.masks):
        if figure not in edited:
            inside |= erosion(mask > 0.5, disk(EDGE))
    return inside & ~dilation(touched, disk(MARGIN))


def masked_ssim(one: NDArray[np.uint8], two: NDArray[np.uint8], region: NDArray[np.bool_]) -> float:
    """Structural similarity (Wang et al. 2004: Gaussian window of 1.5 pixels) averaged over a region; 1 if empty.

    Outside the region the second picture is replaced by the first, so that windows across its border do not count
    what is allowed to differ.
    """
    if not region.any():
        return 1.0
    inside = np.where(region[..., None], two, one)
    _, values = structural_similarity(
        one, inside, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, full=True,
    )  # fmt: skip
    return float(values.mean(2)[region].mean())


def masked_psnr(one: NDArray[np.uint8], two: NDArray[np.uint8], region: NDArray[np.bool_]) -> float:
    """Peak signal-to-noise ratio over a region, decibels, at most 60."""
    error = float(np.square(one[region].astype(np.float64) - two[region]).mean()) if region.any() else 0.0
    return MOST_DECIBELS if error == 0 else min(MOST_DECIBELS, float(10 * np.log10(255**2 / error)))


def _verdict(view: View, image: NDArray[np.uint8], reading: Scene) -> Verdict:
    everywhere = np.ones(image.shape[:2], bool)
    kept, scene, truth = _kept(view, reading), fit_scene(image, reading), view.truth
    return Verdict(
        usable=view.usable,
        success=view.usable and all(_seen(reading, view.case)),
        kept=all(kept),
        kept_share=float(np.mean(kept)),
        identity=_stand(view.scene, scene),
        well_drawn=view.well_drawn and distance(image, render(scene).image) <= WELL_DRAWN,
        psnr=masked_psnr(view.image, image, view.preserved),
        ssim=masked_ssim(view.image, image, view.preserved),
        moved=float(np.sqrt(np.square(view.image.astype(np.float64) - image).mean()) / 255),
        truth_psnr=None if truth is None else masked_psnr(truth, image, everywhere),
        truth_ssim=None if truth is None else masked_ssim(truth, image, everywhere),
    )


def _stand(source: Scene, target: Scene) -> bool:
    """Whether the figures of both stand at the same places."""
    one, two = source.layout, target.layout
    if len(one.x) != len(two.x):
        return False
    aside = max(abs(a - b) for a, b in zip(one.x, two.x, strict=True))
    return aside <= ASIDE and abs(one.near - two.near) <= NEARER


def _as_described(reading: Scene, case: Case) -> bool:
    """Whether a source shows what its prompt says: all of its scene but what the edit inserts."""
    inserted = {(change.attribute, change.figure) for change in case.changes if change.before is None}
    named = [which for which in _attributes(case.figures) if which not in inserted]
    return len(reading.figures) == case.figures and all(
        _value(reading, *which) == _value(case.source, *which) for which in named
    )


def _seen(reading: Scene, case: Case) -> list[bool]:
    """Per change, whether the picture shows what it asks for."""
    return [_value(reading, change.attribute, change.figure) == change.after for change in case.changes]


def _kept(view: View, reading: Scene) -> list[bool]:
    changed = {(change.attribute, change.figure) for change in view.case.changes}
    others = [which for which in _attributes(len(view.scene.figures)) if which not in changed]
    same = [_value(reading, *which) == _value(view.scene, *which) for which in others]
    return [len(reading.figures) == len(view.scene.figures), *same]


def _attributes(figures: int) -> list[tuple[str, int | None]]:
    return [*((name, slot) for slot in range(figures) for name in FIGURE_ATTRIBUTES), ("place", None)]


def _value(scene: Scene, attribute: str, figure: int | None) -> str | None:
    if figure is None:
        return scene.place
    return getattr(scene.figures[figure], attribute) if figure < len(scene.figures) else None


def _pixels(picture: Image.Image) -> NDArray[np.uint8]:
    if picture.size != (IMAGE_SIZE, IMAGE_SIZE):
        raise AdapEditError(
            f"got a picture of {picture.width} x {picture.height} pixels; the judge reads {IMAGE_SIZE} x {IMAGE_SIZE}, "
            "use a model of the scene world"
        )
    return np.asarray(picture.convert("RGB"))
