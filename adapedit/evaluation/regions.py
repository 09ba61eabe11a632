"""Where an edit may change a picture, and where it may not.

The region must not depend on the method that is judged, or a method could widen it. For a rendered source the true
scenes give it. For a generated source only the picture is known, but the world is small: a figure that is read as *a
small red dog sitting* can stand left or right and look left or right, and nothing else. So it is laid over the source
picture at every place, the best fit is taken, and the true edit of that scene says what may change. Attention maps,
which would be at hand too, are coarse, and those of the target's words differ from method to method.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from skimage.morphology import dilation, disk, erosion

from adapedit.evaluation.suite import Change
from adapedit.scenes.render import IMAGE_SIZE, render
from adapedit.scenes.world import Figure, Layout, Scene

MARGIN = 4
"""Pixels around what the true edit changes that may change as well: generated outlines are not drawn with a ruler."""

EDGE = 2
"""Pixels of a figure's rim that do not count as its inside."""

CENTRES = {1: (0.5,), 2: (0.27, 0.73)}
REACH = {1: 0.20, 2: 0.12}
"""Where figures are looked for: around these shares of the side, so far to both sides, by number of figures."""


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


def true_edit(scene: Scene, changes: Sequence[Change]) -> Scene:
    """The scene after the changes."""
    for change in changes:
        scene = scene.edited(change.attribute, change.after, change.figure or 0)
    return scene


def preserved_region(source: Scene, changes: Sequence[Change], size: int = IMAGE_SIZE) -> NDArray[np.bool_]:
    """[S, S] bool: the pixels that an edit of this scene must leave alone.

    Where the place stays: all but what the true edit changes (the edited figures before and after, their shadows),
    with a margin. Where the place changes: the inside of the figures that are not edited.
    """
    target = true_edit(source, changes)
    before, after = render(source, size), render(target, size)
    edited = [change.figure for change in changes if change.figure is not None]
    touched = np.zeros((size, size), dtype=bool)
    for figure in edited:
        touched |= (before.masks[figure] > 0) | (after.masks[figure] > 0)
    if source.place == target.place:
        return ~_grown(touched | (before.image != after.image).any(2))
    others = [mask for figure, mask in enumerate(before.masks) if figure not in edited]
    inside = np.zeros((size, size), dtype=bool)
    for mask in others:
        inside |= erosion(mask > 0.5, disk(EDGE))
    return inside & ~_grown(touched)


def _grown(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return dilation(region, disk(MARGIN))


def _scene(figures: tuple[Figure, ...], place: str, x: tuple[float, ...], facing: tuple[int, ...]) -> Scene:
    layout = Layout(x=x, facing=facing, horizon=0.54, sun=(0.8, 0.14), cloud=(0.2, 0.15), scenery=(0.2, 0.8))
    return Scene(figures=figures, place=place, layout=layout)
