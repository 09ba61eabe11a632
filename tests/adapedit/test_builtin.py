"""The model that comes with the project: what is in its folder, and that what an edit must show holds with it, too."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors import safe_open

from adapedit import AdapEditError, AdapEditPipeline
from adapedit.checkpoints import BUILTIN
from adapedit.cli.main import run
from adapedit.loading import load_vocabulary
from benchmarks.scenes.generator import LIMIT
from benchmarks.scenes.world import VOCABULARY
from tests.helpers.edits import SOURCE, TARGET, grey_levels, request

STEPS = 12


@pytest.fixture(scope="module")
def trained() -> AdapEditPipeline:
    return AdapEditPipeline.from_pretrained()


def test_weights_are_half_precision_safetensors_of_at_most_45_mib():
    files = [path for path in BUILTIN.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LIMIT == 45 * 2**20
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert {path.parent.name for path in weights} >= {"text_encoder", "unet", "vae"}
    for path in weights:
        with safe_open(path, "pt") as file:
            assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118


def test_its_vocabulary_is_that_of_the_captions():
    assert load_vocabulary().facts.known_words == tuple(VOCABULARY)


def test_its_words_are_in_the_help(capsys: pytest.CaptureFixture[str]):
    assert run(["--help"]) == 0
    said = capsys.readouterr().out.partition("Words of the built-in model:")[2].split()
    assert said[: len(VOCABULARY)] == list(VOCABULARY)


@pytest.mark.slow
def test_unknown_words_are_refused_with_those_that_are_known(trained):
    with pytest.raises(AdapEditError, match="'zebra', a word that .* it knows: a, an, and,"):
        trained(SOURCE, "a red zebra")


@pytest.mark.slow
def test_edits_keep_their_pictures_whatever_the_batch(trained):
    requests = [
        request(steps=STEPS),
        request(SOURCE, "a big red dog standing on the grass", steps=STEPS, lambda_tau=0.5),
        request("a girl on the snow", "a boy jumping on the snow", seed=2, steps=8),
        request("a small blue bird", "a small green bird", seed=1, steps=STEPS, method="prompt-to-prompt"),
        request(SOURCE, TARGET, steps=STEPS, method="plain"),
    ]
    alone = [trained.edit_batch([one])[0] for one in requests]
    for shared in (False, True):
        for one, other in zip(alone, trained.edit_batch(requests, share_sources=shared), strict=True):
            assert grey_levels(one.source_image, other.source_image) <= 1
            assert grey_levels(one.target_image, other.target_image) <= 1
    assert grey_levels(alone[0].source_image, alone[-1].source_image) == 0
    assert grey_levels(alone[0].target_image, alone[-1].target_image) > 10


@pytest.mark.slow
def test_its_maps_and_steps_tell_words_apart(trained):
    result = trained(SOURCE, TARGET, num_inference_steps=STEPS)
    steps = {word.text: word.word_steps for word in result.words}
    assert max(steps["red"], steps["dog"], steps["sitting"]) < 0.1 < 0.3 < steps["grass"]
    assert result.warnings == () and result.spatial_map is not None
    # Where "dog" looks the edit may act, and where "grass" looks it may not.
    dog, grass = (result.word_map(result.alignment.find(text)[0]).ravel() for text in ("dog", "grass"))
    assert np.corrcoef(dog, result.spatial_map.ravel())[0, 1] > 0.5
    assert np.corrcoef(grass, result.spatial_map.ravel())[0, 1] < -0.5
    same = trained(SOURCE, SOURCE, num_inference_steps=STEPS)
    assert grey_levels(same.source_image, same.target_image) == 0


def test_a_wheel_would_hold_all_of_it() -> None:
    tomllib = pytest.importorskip("tomllib")
    with (BUILTIN.parents[1] / "pyproject.toml").open("rb") as file:
        patterns = tomllib.load(file)["tool"]["setuptools"]["package-data"]["adapedit"]
    packed = {path for pattern in patterns for path in BUILTIN.parent.glob(pattern)}
    assert {path for path in BUILTIN.rglob("*") if path.is_file()} <= packed
