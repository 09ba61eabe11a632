"""SDXL: what runs like diffusers' own pipeline, and how edits of it are told of a whole prompt and of sizes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, StableDiffusionXLPipeline
from torch import Tensor

from adapedit import AdapEditError, AdapEditPipeline
from adapedit.configs import ModelError
from adapedit.loading import load_vocabulary
from adapedit.prompts.tokens import prompt_ids
from adapedit_engine.models.layers import LayerSpec, resolve_map_level
from adapedit_engine.plan import EditOutcome
from tests.helpers.edits import SOURCE, TARGET, grey_levels, request
from tests.helpers.methods import plan_of, run
from tests.helpers.tiny_model import XL_SCHEDULER, XL_SIDE, save_tiny_xl

STEPS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_xl(tmp_path_factory.mktemp("xl"))


@pytest.fixture(scope="module")
def pipe(folder: Path) -> AdapEditPipeline:
    return AdapEditPipeline.from_pretrained(folder)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A checkpoint to be broken."""
    return Path(shutil.copytree(folder, tmp_path / "model"))


def by_diffusers(pipe: AdapEditPipeline, folder: Path, seed: int, **options: Any) -> Tensor:
    """The source's latents that diffusers makes of the same checkpoint, seed and scheduler."""
    theirs = StableDiffusionXLPipeline.from_pretrained(folder)
    theirs.scheduler = pipe.scheduler
    theirs.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": STEPS, "guidance_scale": 5.0, **options}
    drawn = torch.Generator().manual_seed(seed)
    return theirs(SOURCE, generator=drawn, output_type="latent", **options).images


def same(outcome: EditOutcome, theirs: Tensor) -> None:
    """The source's latents are theirs to 1e-4; of large ones, as random weights make, to rounding."""
    torch.testing.assert_close(outcome.latents[:1], theirs, atol=1e-4, rtol=1e-5, check_stride=False)


@pytest.mark.parametrize("method", ["adapedit", "prompt-to-prompt", "masactrl", "plain"])
def test_the_source_of_an_edit_is_the_picture_of_diffusers(pipe, folder, method):
    plan = plan_of(pipe, request(method=method, seed=3, steps=STEPS))
    (outcome,) = run(pipe, [plan])
    same(outcome, by_diffusers(pipe, folder, 3))
    assert not torch.equal(outcome.latents[0], outcome.latents[1])


@pytest.mark.parametrize(
    ("scheduler", "steps", "guidance"),
    [
        (EulerAncestralDiscreteScheduler(**XL_SCHEDULER), 2, 0.0),  # as Turbo
        (EulerDiscreteScheduler(**XL_SCHEDULER), 4, 0.0),  # as Lightning
        (EulerDiscreteScheduler(**{**XL_SCHEDULER, "timestep_spacing": "leading"}), 5, 5.0),  # as the base
    ],
    ids=["turbo", "lightning", "base"],
)
def test_checkpoints_of_few_steps_and_their_schedulers(folder, scheduler, steps, guidance):
    pipe = AdapEditPipeline.from_pretrained(folder, scheduler=scheduler)
    asked = request(seed=5, steps=steps).model_copy(update={"guidance_scale": guidance})
    (outcome,) = run(pipe, [plan_of(pipe, asked)])
    wanted = by_diffusers(pipe, folder, 5, num_inference_steps=steps, guidance_scale=guidance)
    same(outcome, wanted)
    assert plan_of(pipe, asked).guidance == (2 if guidance > 1 else 1)


def test_pictures_that_are_not_square(pipe, folder):
    size = {"height": XL_SIDE, "width": 3 * XL_SIDE // 2}
    asked = request(seed=1, steps=STEPS).model_copy(update=size)
    plan = plan_of(pipe, asked)
    assert plan.conditioning["time_ids"][1, 1].tolist() == [32, 48, 0, 0, 32, 48]
    (outcome,) = run(pipe, [plan])
    same(outcome, by_diffusers(pipe, folder, 1, **size))


def test_it_is_told_of_sizes_as_diffusers_tells_it(pipe, folder):
    told = {"original_size": (100, 80), "crops_coords_top_left": (3, 4), "target_size": (20, 30)}
    asked = request(seed=1, steps=STEPS).model_copy(update=told)
    plan = plan_of(pipe, asked)
    assert plan.conditioning["time_ids"][0, 0].tolist() == [100, 80, 3, 4, 20, 30]
    (outcome,) = run(pipe, [plan])
    same(outcome, by_diffusers(pipe, folder, 1, **told))
    assert json.loads(asked.model_dump_json())["original_size"] == [100, 80]
    assert pipe(SOURCE, TARGET, num_inference_steps=1, original_size=[100, 80]).request.original_size == (
        100,
        80,
    )


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (
            {"original_size": (64, 64)},
            "original_size is told to SDXL, and .* is none; leave original_size out",
        ),
        ({"target_size": (64,)}, "target_size"),
        ({"crops_coords_top_left": (-1, 0)}, "crops_coords_top_left.0 is -1"),
        ({"negative_target_size": (64, 64)}, "use original_size, crops_coords_top_left and target_size"),
    ],
)
def test_sizes_that_can_not_be_told(tiny_folder, told, message):
    with pytest.raises(AdapEditError, match=message) as error:
        AdapEditPipeline.from_pretrained(tiny_folder)(SOURCE, TARGET, **told)
    assert "\n" not in str(error.value)


def test_edits_share_calls_and_sources_as_they_would_run_alone(pipe):
    asked = [request(seed=1), request(seed=1, method="prompt-to-prompt"), request(target=SOURCE, seed=2)]
    alone = [pipe.edit_batch([one])[0] for one in asked]
    for one, other in zip(alone, pipe.edit_batch(asked), strict=True):
        assert grey_levels(one.source_image, other.source_image) <= 1
        assert grey_levels(one.target_image, other.target_image) <= 1


def test_an_edit_of_a_real_picture(pipe):
    picture = pipe(SOURCE, TARGET, num_inference_steps=2).source_image
    for inversion in ("direct", "null-text"):
        options: Any = {
            "name": inversion,
            **({"cache": "off", "inner_steps": 1} if "null" in inversion else {}),
        }
        result = pipe(SOURCE, TARGET, image=picture, inversion=options, num_inference_steps=2)
        assert np.isfinite(result.target_maps).all()


def test_the_empty_prompt_is_nothing_at_all_where_the_checkpoint_says_so(pipe, copy):
    zero = plan_of(pipe, request())
    assert not zero.encoder_hidden_states[:, 0].any() and not zero.conditioning["text_embeds"][:, 0].any()
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "force_zeros_for_empty_prompt": False}))
    other = AdapEditPipeline.from_pretrained(copy)
    plan = plan_of(other, request(seed=3, steps=STEPS))
    assert plan.encoder_hidden_states[:, 0].any()
    (outcome,) = run(other, [plan])
    wanted = by_diffusers(other, copy, 3)
    same(outcome, wanted)


def test_both_tokenizers_cut_words_alike_and_pad_as_they_do(pipe):
    one, two = prompt_ids("a red dog!", pipe.model.tokenizers, max_length=20)
    assert one[:4] == two[:4] and one[-1] == pipe.model.tokenizer.eos_token_id and two[-1] == 0
    assert two[4] == 0 != one[4]  # the sign, which the second takes for its padding, and does not drop
    assert load_vocabulary(pipe.model.name).facts == pipe.model.facts


def test_words_that_tokenizers_cut_otherwise_are_refused(pipe, copy):
    path = copy / "tokenizer_2" / "tokenizer.json"
    tokens = json.loads(path.read_text())
    tokens["model"]["merges"] = [pair for pair in tokens["model"]["merges"] if pair != ["do", "g</w>"]]
    path.write_text(json.dumps(tokens))
    with pytest.raises(AdapEditError, match="tokenizers cut 'dog' in the source prompt otherwise"):
        AdapEditPipeline.from_pretrained(copy)(SOURCE, TARGET)


def test_in_half_precision_the_vae_stays_wide(copy, pipe):
    assert pipe.model.wide_vae
    half = AdapEditPipeline.from_pretrained(copy, torch_dtype=torch.float16).model
    assert (half.runner.dtype, half.vae.dtype) == (torch.float16, torch.float32)
    assert (
        AdapEditPipeline.from_pretrained(copy, torch_dtype=torch.bfloat16).model.vae.dtype == torch.bfloat16
    )


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("unet", {"addition_embed_type": None}, "addition_embed_type: wanted that of Stable Diffusion XL"),
        ("unet", {"cross_attention_dim": 32}, "cross_attention_dim: wanted the text encoder's 72, got 32"),
        (
            "unet",
            {"projection_class_embeddings_input_dim": 70},
            "projection_class_embeddings_input_dim: wanted 72 for its text encoders, got 70",
        ),
        ("text_encoder_2", {"max_position_embeddings": 77}, "max_position_embeddings: wanted as many as"),
    ],
)
def test_parts_that_do_not_go_together_are_refused_before_weights_are_read(
    copy, monkeypatch, part, values, message
):
    monkeypatch.setattr("adapedit.loading.read_part", lambda *args, **options: pytest.fail("it was read"))
    path = copy / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(ModelError, match=f"config.json: {message}"):
        AdapEditPipeline.from_pretrained(copy)


def test_a_checkpoint_that_lacks_a_text_encoder(copy):
    shutil.rmtree(copy / "text_encoder_2")
    with pytest.raises(ModelError, match="no Stable Diffusion XL checkpoint .*no text_encoder_2"):
        AdapEditPipeline.from_pretrained(copy)


@pytest.mark.parametrize(
    ("side", "levels", "wanted"), [(64, (0, 1, 2), 1), (96, (0, 1, 2), 1), (128, (1, 2), 2), (8, (0,), 0)]
)
def test_maps_are_of_about_a_thousand_pixels(side, levels, wanted):
    layers = tuple(LayerSpec(name=str(level), place="up", level=level, channels=8) for level in levels)
    assert resolve_map_level(layers, None, side) == wanted
