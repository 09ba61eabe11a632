"""The judge: did the edit happen, and did everything else stay?

A reader that was trained on drawn pictures only says what the source and the edited picture show. It is compared with
itself: what counts as kept is what it saw in the *source*, so its mistakes fall on all methods alike. An edit scores

    product = success * kept * background

with success and kept 0 or 1 and background the structural similarity, clipped to 0..1, where nothing may change.
Copying the source has no success; another picture of the same prompt has no background.

Where nothing may change must not depend on the method that is judged, or a method could widen it. For a drawn source
the true scenes say it. For a generated source only the picture is known, but the world is small: a figure that is read
as *a small red dog sitting* can stand left or right and look left or right, and nothing else. So it is laid over the
source picture at every place, the best fit is taken, and the true edit of that scene says what may change.
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
from benchmarks.scenes.world import FIGURE_ATTRIBUTES, Figure, Layout, Scene

Reading = tuple[tuple[Figure, ...], str]
MOST_DECIBELS = 60.0
"""PSNR of pictures that do not differ at all: more than any that do."""

MARGIN = 4
"""Pixels around what the true edit changes that may change as well: generated outlines are not drawn with a ruler."""

EDGE = 2
"""Pixels of a figure's rim that do not count as its inside."""

CENTRES = {1: (0.5,), 2: (0.27, 0.73)}
REACH = {1: 0.20, 2: 0.12}
"""Where figures are looked for: around these shares of the side, so far to both sides, by number of figures."""


class SceneReader(Protocol):
    """Says what pictures [B, 3, 128, 128] float32 in -1..1 show: figures from left to right, and the place."""

    def read(self, pixels: Tensor) -> list[Reading]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """A source picture [S, S, 3] uint8 as the judge sees it.

    usable:    false where it is not what its prompt says, or shows the edit already: such a case says nothing about
               any method (one that draws the target prompt right would have changed what it was to keep), and is
               left out for all of them.
    preserved: [S, S] bool, where nothing may change.
    truth:     the true edited picture, of drawn sources.
    """

    case: Case
    image: NDArray[np.uint8]
    reading: Reading
    usable: bool
    preserved: NDArray[np.bool_]
    truth: NDArray[np.uint8] | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one edited picture is worth.

    success:    every changed word is seen where it belongs.
    kept:       every other attribute, the number of figures among them, reads as in the source; kept_share: how many.
    psnr, ssim: against the source, where nothing may change; decibels (at most 60), and -1..1.
    moved:      root mean square difference to the source over the whole picture, 0..1.
    truth_psnr, truth_ssim: against the true edited picture, of drawn sources.
    """

    usable: bool
    success: bool
    kept: bool
    kept_share: float
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
        return self.success * self.kept * self.background


@dataclass(frozen=True)
class Judge:
    """Scores edited pictures of the scene world."""

    reader: SceneReader

    def view(self, case: Case, source: Image.Image, *, drawn: bool = False) -> View:
        """Look at a source picture; `drawn`: it is the drawing of `case.source`, so that the truth is known."""
        image = _pixels(source)
        (reading,) = self._read([image])
        figures, place = reading
        scene = case.source if drawn else fit_scene(image, figures, place)
        usable = _as_described(reading, case) and not any(_seen(reading, case))
        return View(
            case=case,
            image=image,
            reading=reading,
            usable=usable,
            preserved=preserved_region(scene, case.changes) if usable else np.ones(image.shape[:2], bool),
            truth=render(case.target).image if drawn else None,
        )

    def verdicts(self, view: View, edited: Sequence[Image.Image]) -> list[Verdict]:
        """Judge edits of one source."""
        images = [_pixels(picture) for picture in edited]
        return [
            _verdict(view, image, reading) for image, reading in zip(images, self._read(images), strict=True)
        ]

    def _read(self, images: Sequence[NDArray[np.uint8]]) -> list[Reading]:
        if not images:
            return []
        return self.reader.read(to_pixels(np.stack(images)))


def fit_scene(image: NDArray[np.uint8], figures: tuple[Figure, ...], place: str) -> Scene:
    """The scene of these figures that fits a picture [S, S, 3] best; of its layout only the figures mean anything."""
    count = len(figures)
    templates = {facing: _scene(figures, place, CENTRES[count], (facing,) * count) for facing in (1, -1)}
    pictures = {facing: render(scene, len(image)) for facing, scene in templates.items()}
    reach = round(REACH[count] * len(image))
    x, facing = [], []
    for figure in range(count):
        found = []
        for way, picture in pictures.items():
            rows, columns = np.nonzero(picture.masks[figure] > 0.9)
            colours = picture.image[rows, columns].astype(np.float32)
            for shift in range(-reach, reach + 1):
                there = columns + shift
                # Of a figure that reaches over the border only what is in the picture can be compared.
                visible = (there >= 0) & (there < len(image))
                error = float(np.square(image[rows[visible], there[visible]] - colours[visible]).mean())
                found.append((error, abs(shift), shift, way))
        _, _, shift, way = min(found)
        x.append(CENTRES[count][figure] + shift / len(image))
        facing.append(way)
    return _scene(figures, place, tuple(x), tuple(facing))


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


def _scene(figures: tuple[Figure, ...], place: str, x: tuple[float, ...], facing: tuple[int, ...]) -> Scene:
    layout = Layout(x=x, facing=facing, horizon=0.54, sun=(0.8, 0.14), cloud=(0.2, 0.15), scenery=(0.2, 0.8))
    return Scene(figures=figures, place=place, layout=layout)


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


def _verdict(view: View, image: NDArray[np.uint8], reading: Reading) -> Verdict:
    everywhere = np.ones(image.shape[:2], bool)
    kept = _kept(view, reading)
    truth = view.truth
    return Verdict(
        usable=view.usable,
        success=view.usable and all(_seen(reading, view.case)),
        kept=all(kept),
        kept_share=float(np.mean(kept)),
        psnr=masked_psnr(view.image, image, view.preserved),
        ssim=masked_ssim(view.image, image, view.preserved),
        moved=float(np.sqrt(np.square(view.image.astype(np.float64) - image).mean()) / 255),
        truth_psnr=None if truth is None else masked_psnr(truth, image, everywhere),
        truth_ssim=None if truth is None else masked_ssim(truth, image, everywhere),
    )


def _as_described(reading: Reading, case: Case) -> bool:
    """Whether a source shows what its prompt says: all of its scene but what the edit inserts."""
    inserted = {(change.attribute, change.figure) for change in case.changes if change.before is None}
    scene = (case.source.figures, case.source.place)
    named = [which for which in _attributes(case.figures) if which not in inserted]
    return len(reading[0]) == case.figures and all(_value(reading, *w) == _value(scene, *w) for w in named)


def _seen(reading: Reading, case: Case) -> list[bool]:
    """Per change, whether the picture shows what it asks for."""
    return [_value(reading, change.attribute, change.figure) == change.after for change in case.changes]


def _kept(view: View, reading: Reading) -> list[bool]:
    changed = {(change.attribute, change.figure) for change in view.case.changes}
    others = [which for which in _attributes(len(view.reading[0])) if which not in changed]
    same = [_value(reading, *which) == _value(view.reading, *which) for which in others]
    return [len(reading[0]) == len(view.reading[0]), *same]


def _attributes(figures: int) -> list[tuple[str, int | None]]:
    return [*((name, slot) for slot in range(figures) for name in FIGURE_ATTRIBUTES), ("place", None)]


def _value(reading: Reading, attribute: str, figure: int | None) -> str | None:
    figures, place = reading
    if figure is None:
        return place
    return getattr(figures[figure], attribute) if figure < len(figures) else None


def _pixels(picture: Image.Image) -> NDArray[np.uint8]:
    if picture.size != (IMAGE_SIZE, IMAGE_SIZE):
        raise AdapEditError(
            f"got a picture of {picture.width} x {picture.height} pixels; the judge reads {IMAGE_SIZE} x {IMAGE_SIZE}, "
            "use a model of the scene world"
        )
    return np.asarray(picture.convert("RGB"))
