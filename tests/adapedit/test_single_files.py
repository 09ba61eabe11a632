"""Single files of weights: converted as diffusers does, with the JSONs of a folder or of what was published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from adapedit import AdapEditPipeline, architectures
from adapedit.checkpoints import Source
from adapedit.cli.main import USER_ERROR
from adapedit.cli.main import run as command
from adapedit.configs import ModelError, read_configs
from adapedit.http.lane import load_source
from adapedit.http.settings import ModelSource
from adapedit.loading import load_vocabulary
from adapedit.model import checkpoint_of
from adapedit_export.export import export_bundle
from adapedit_export.options import ExportOptions
from tests.helpers.edits import SOURCE, TARGET, grey_levels
from tests.helpers.single_file import save_single_file
from tests.helpers.tiny_model import save_tiny_model, save_tiny_xl

SCHEDULER: dict[str, Any] = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    where = tmp_path_factory.mktemp("folders")
    return {"sd": save_tiny_model(where / "sd", **SCHEDULER), "xl": save_tiny_xl(where / "xl", layers=10)}


@pytest.fixture(scope="module")
def files(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    where = tmp_path_factory.mktemp("files")
    return {
        kind: save_single_file(
            AdapEditPipeline.from_pretrained(folder).components, where / f"{kind}.safetensors"
        )
        for kind, folder in folders.items()
    }


def refused(file: str | Path, message: str, **options: Any) -> None:
    with pytest.raises(ModelError, match=message) as error:
        AdapEditPipeline.from_single_file(file, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_a_file_is_the_checkpoint_that_it_was_made_of(folders, files, kind, tmp_path):
    config = shutil.copytree(
        folders[kind], tmp_path / "config", ignore=shutil.ignore_patterns("*.safetensors")
    )
    one = AdapEditPipeline.from_pretrained(folders[kind])
    other = AdapEditPipeline.from_single_file(files[kind], config=config)
    for name, part in one.components.items():
        if isinstance(part, torch.nn.Module):
            theirs = other.components[name].state_dict()
            for key, weight in part.state_dict().items():
                torch.testing.assert_close(theirs[key], weight, rtol=0, atol=0, check_stride=False)
    assert dict(one.scheduler.config) == dict(other.scheduler.config) and one.model.facts == other.model.facts
    first, second = (pipe(SOURCE, TARGET, num_inference_steps=2) for pipe in (one, other))
    assert first.source_image.tobytes() == second.source_image.tobytes()
    assert first.target_image.tobytes() == second.target_image.tobytes()
    half = AdapEditPipeline.from_single_file(files[kind], config=config, torch_dtype=torch.float16).model
    assert half.vae.dtype == (torch.float32 if kind == "xl" else torch.float16) and half.wide_vae == (
        kind == "xl"
    )


def test_without_a_config_it_is_what_was_published(folders, files, monkeypatch):
    """Which is tiny here."""
    parts = ("unet", "vae", "text_encoder")
    tiny = {part: json.loads((folders["sd"] / part / "config.json").read_text()) for part in parts}
    scheduler = {**architectures.NOISE, **SCHEDULER, "timestep_spacing": "trailing"}
    monkeypatch.setitem(architectures.ARCHITECTURES, "v1", {**tiny, "scheduler": scheduler})
    refused(files["sd"], "holds no tokenizer; give config, a folder of its family .*--tokenizer")
    refused(files["sd"], "tokenizer is .*nowhere', wanted the folder of one", tokenizer="nowhere")
    wanted = AdapEditPipeline.from_pretrained(folders["sd"])(SOURCE, TARGET, num_inference_steps=1)
    own = AdapEditPipeline.from_pretrained(folders["sd"]).components["tokenizer"]
    for tokenizer in (folders["sd"] / "tokenizer", own):
        pipe = AdapEditPipeline.from_single_file(files["sd"], tokenizer=tokenizer)
        assert (
            pipe(SOURCE, TARGET, num_inference_steps=1).source_image.tobytes()
            == wanted.source_image.tobytes()
        )


COUNTS = {
    "v1": {"unet": 859_520_964, "text_encoder": 123_060_480, "vae": 83_653_863},
    "v2": {"unet": 865_910_724, "text_encoder": 340_387_840, "vae": 83_653_863},
    "xl_base": {
        "unet": 2_567_463_684,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
        "vae": 83_653_863,
    },
}


@pytest.mark.parametrize("kind", list(COUNTS))
def test_published_architectures_have_the_published_numbers_of_weights(kind, folders, tmp_path):
    architectures.write_architecture(kind, tmp_path)
    for part in ("tokenizer", "tokenizer_2"):
        shutil.copytree(folders["xl"] / part, tmp_path / part)
    configs = read_configs(tmp_path)
    texts = configs.index.family.text_encoders
    found = {}
    with torch.device("meta"):
        for part, text in zip(texts, configs.texts, strict=True):
            own: Any = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
            found[part] = own(CLIPTextConfig(**text.fields))
        for part, of in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
            found[part] = of.from_config(of.load_config(tmp_path, subfolder=part))
    assert {name: sum(p.numel() for p in part.parameters()) for name, part in found.items()} == COUNTS[kind]


def test_what_is_no_file_of_these_families_is_refused_before_weights_are_read(folders, files, tmp_path):
    config = {"config": folders["sd"]}
    refused(tmp_path / "none.safetensors", "there is no file .*none.safetensors", **config)
    refused(folders["sd"], "is no file of weights", **config)
    pickled = tmp_path / "model.ckpt"
    pickled.write_bytes(b"\x80\x02}.")
    refused(
        pickled,
        r"is a pickle, .*from_single_file\('model.ckpt'\).save_pretrained\('folder'\) converts",
        **config,
    )
    data = files["sd"].read_bytes()
    (tmp_path / "half.safetensors").write_bytes(data[: len(data) // 2])
    refused(tmp_path / "half.safetensors", "corrupt or cut short .*copy it again", **config)
    refused(
        files["xl"],
        "is of Stable Diffusion XL, its config .* of Stable Diffusion; give one of its own",
        **config,
    )
    refused(files["sd"], "config is 'nowhere', wanted a folder", config="nowhere")
    one = torch.ones(1)
    for name, tensors, message in (
        ("lora", {"lora_unet_down.alpha": one}, "has no UNet .*LoRA .*from_pipe"),
        (
            "flux",
            {"double_blocks.0.img_attn.norm.key_norm.scale": one},
            "is of kind 'flux-schnell', which is not supported; give one of Stable Diffusion",
        ),
        (
            "half-known",
            {"double_blocks.0.img_attn.norm.key_norm.scale": one, "guidance_in.in_layer.bias": one + 1},
            "is of no kind that is known",
        ),
    ):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        refused(tmp_path / f"{name}.safetensors", message, **config)


def test_a_file_that_lacks_weights_is_refused(folders, files, tmp_path):
    weights = load_file(files["sd"])
    weights.pop("model.diffusion_model.out.2.weight")
    save_file(weights, tmp_path / "less.safetensors")
    refused(tmp_path / "less.safetensors", "lacks|converted", config=folders["sd"])
    weights = load_file(files["sd"])
    weights["model.diffusion_model.out.2.weight"][0] = torch.nan
    save_file(weights, tmp_path / "nan.safetensors")
    refused(tmp_path / "nan.safetensors", "numbers in conv_out.weight that are none", config=folders["sd"])


def test_commands_take_files_and_variants(folders, files, tmp_path, capfd):
    edit = ["edit", SOURCE, TARGET, "--steps", "1", "--out", str(tmp_path / "out"), "--model"]
    assert command([*edit, str(files["sd"]), "--config", str(folders["sd"])]) == 0
    assert (tmp_path / "out" / "target.png").is_file()
    assert command([*edit, str(files["sd"])]) == USER_ERROR
    assert command([*edit, str(folders["sd"]), "--weights-variant", "fp16"]) == USER_ERROR
    said = capfd.readouterr().err
    assert "holds no tokenizer" in said and "no weights of variant 'fp16'" in said
    served = load_source(ModelSource(name="one", source=str(files["sd"]), config=folders["sd"]))
    assert served.max_tokens == load_vocabulary(folders["sd"]).max_tokens
    source = Source(place=files["sd"], config=folders["sd"])
    assert load_vocabulary(source).max_tokens == load_vocabulary(folders["sd"]).max_tokens


@pytest.mark.slow
def test_a_bundle_of_a_file_edits_as_the_file_does(folders, files, tmp_path):
    pipe = AdapEditPipeline.from_single_file(files["sd"], config=folders["sd"])
    made = export_bundle(checkpoint_of(pipe.model), tmp_path / "bundle", ExportOptions(check_steps=2))
    one, other = (
        each(SOURCE, TARGET, num_inference_steps=3, seed=2)
        for each in (pipe, AdapEditPipeline.from_bundle(made.folder))
    )
    assert (
        grey_levels(one.target_image, other.target_image)
        <= 1
        < grey_levels(one.source_image, one.target_image)
    )
