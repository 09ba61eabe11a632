"""The judge can't be fooled: a copy has no success, the truth scores highest, another picture keeps nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from adapedit import AdapEditError
from benchmarks.quality.judge import (
    Judge,
    Verdict,
    masked_psnr,
    masked_ssim,
    preserved_region,
)
from benchmarks.quality.suite import Case, scene_suite
from benchmarks.scenes.drawing import render
from benchmarks.scenes.reader import TRAINED, fit_scene, load_reader
from benchmarks.scenes.world import Layout, random_scene
from tests.benchmarks.quality.fake_reader import PerfectReader

CASES = scene_suite(limit=28)


def moved(layout: Layout, figures: int) -> Layout:
    """Another layout, by half a standard deviation in everything."""
    return Layout.of([number + 0.5 * (-1) ** place for place, number in enumerate(layout.numbers())], figures)


def three_verdicts(case: Case, drawn: bool) -> tuple[Verdict, Verdict, Verdict]:
    """Of a copy of the source, the true edit, and a random scene of as many figures."""
    reader = PerfectReader()
    judge = Judge(reader)
    other = random_scene(np.random.default_rng(case.seed), two_figures=case.figures - 1)
    pictures = [reader.draw(scene) for scene in (case.source, case.target, other)]
    view = judge.view(case, pictures[0], drawn=drawn)
    assert view.usable
    copy, truth, random = judge.verdicts(view, pictures)
    return copy, truth, random


@pytest.mark.parametrize(
    "case",
    [*CASES[:6], *(pytest.param(case, marks=pytest.mark.slow) for case in CASES[6:14])],
    ids=lambda case: case.name,
)
@pytest.mark.parametrize("drawn", [True, False], ids=["known scene", "fitted scene"])
def test_it_cannot_be_fooled(case: Case, drawn: bool) -> None:
    copy, truth, random = three_verdicts(case, drawn)
    assert not copy.success and copy.kept and copy.product == 0 and copy.moved == 0
    assert truth.success and truth.kept and truth.product > 0.98 and truth.moved > 0
    assert random.kept_share < 1 and not random.kept and random.product == 0
    if drawn:
        assert truth.truth_psnr == 60 and truth.truth_ssim == pytest.approx(1)
        assert copy.truth_psnr is not None and copy.truth_psnr < 60
    else:
        assert truth.truth_psnr is None


def test_the_background_of_another_picture_is_poor() -> None:
    values = [three_verdicts(case, True) for case in CASES[:7]]
    assert np.mean([random.background for _, _, random in values]) < 0.75
    assert np.mean([truth.psnr - random.psnr for _, truth, random in values]) > 15


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_figures_are_found_in_the_picture(case: Case) -> None:
    away = replace(case.source, layout=moved(case.source.layout, case.figures))
    found = fit_scene(render(case.source).image, away)
    assert np.allclose(found.layout.x, case.source.layout.x, atol=2 / 128)
    regions = [preserved_region(scene, case.changes) for scene in (case.source, found)]
    assert (regions[0] != regions[1]).mean() < 0.05


def test_the_region_leaves_out_what_the_edit_changes_and_little_else() -> None:
    for case in CASES:
        region = preserved_region(case.source, case.changes)
        before, after = render(case.source), render(case.target)
        same = (before.image == after.image).all(2)
        if case.kind == "place":
            assert region.any() and not (region & (before.masks.max(0) < 0.5)).any()
        if "place" not in [change.attribute for change in case.changes]:
            assert same[region].all() and 0.4 < region.mean() < 0.97


def test_cases_that_show_the_edit_already_are_not_usable() -> None:
    reader, case = PerfectReader(), CASES[0]
    judge = Judge(reader)
    done = reader.draw(case.target)
    view = judge.view(case, done)
    assert not view.usable and not judge.verdicts(view, [done])[0].success
    crowd = next(other for other in CASES if other.figures == 2)
    assert not judge.view(case, reader.draw(crowd.source)).usable


def test_a_lost_figure_is_not_kept() -> None:
    reader = PerfectReader()
    judge = Judge(reader)
    case = next(other for other in CASES if other.figures == 2 and other.kind == "pose")
    view = judge.view(case, reader.draw(case.source))
    alone = next(other for other in CASES if other.figures == 1)
    (verdict,) = judge.verdicts(view, [reader.draw(alone.source)])
    assert not verdict.kept


def test_noise_outside_the_figure_lowers_the_product_and_inside_it_does_not() -> None:
    reader, case = PerfectReader(), CASES[0]
    judge = Judge(reader)
    view = judge.view(case, reader.draw(case.source), drawn=True)
    truth = np.asarray(reader.draw(case.target))
    noise = np.random.default_rng(0).normal(0, 25, truth.shape)
    products = []
    for where in (~view.preserved, view.preserved):
        noisy = np.where(where[..., None], np.clip(truth + noise, 0, 255), truth).astype(np.uint8)
        picture = Image.fromarray(noisy)
        reader.learn(picture, case.target)
        products.append(judge.verdicts(view, [picture])[0].product)
    assert products[0] > 0.98 > 0.9 > products[1]


def test_psnr_and_ssim_are_the_closed_forms() -> None:
    one = np.full((32, 32, 3), 100, np.uint8)
    two = np.full((32, 32, 3), 110, np.uint8)
    everywhere = np.ones((32, 32), bool)
    assert masked_psnr(one, two, everywhere) == pytest.approx(20 * np.log10(25.5))
    constant = (2 * 100 * 110 + (0.01 * 255) ** 2) / (100**2 + 110**2 + (0.01 * 255) ** 2)
    assert masked_ssim(one, two, everywhere) == pytest.approx(constant)
    half = everywhere.copy()
    half[16:] = False
    two[:16] = 100
    assert masked_psnr(one, two, half) == 60 and masked_ssim(one, two, half) == pytest.approx(1)


def test_pictures_of_another_size_are_refused() -> None:
    with pytest.raises(AdapEditError, match="got a picture of 64 x 64"):
        Judge(PerfectReader()).view(CASES[0], Image.new("RGB", (64, 64)))


@pytest.mark.slow
@pytest.mark.skipif(not TRAINED.exists(), reason="the trained reader is not in this tree")
def test_the_trained_reader_cannot_be_fooled_either() -> None:
    judge = Judge(load_reader())
    verdicts = []
    for case in scene_suite(limit=70):
        other = random_scene(np.random.default_rng(case.seed), two_figures=case.figures - 1)
        pictures = [Image.fromarray(render(scene).image) for scene in (case.source, case.target, other)]
        view = judge.view(case, pictures[0], drawn=True)
        if view.usable:
            verdicts.append(judge.verdicts(view, pictures))
    assert len(verdicts) > 60
    products = np.array([[verdict.product for verdict in row] for row in verdicts])
    assert (products[:, 0] == 0).all()
    assert products[:, 1].mean() > 0.9 and products[:, 2].mean() < 0.02
    assert np.mean([row[2].kept for row in verdicts]) < 0.05
