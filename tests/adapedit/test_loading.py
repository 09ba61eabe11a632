"""Loading: what runs like diffusers' own pipeline, and what is refused before anything is built."""

from __future__ import annotations

import json
import shutil
import socket
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from adapedit import AdapEditError, AdapEditPipeline
from adapedit.calls import EditWarning
from adapedit.checkpoints import locate
from adapedit.cli.main import USER_ERROR, run
from adapedit.configs import ModelError, ModelFacts, read_configs
from adapedit.loading import load_model, load_vocabulary
from tests.helpers.diffusers import by_diffusers
from tests.helpers.edits import SOURCE, TARGET, grey_levels
from tests.helpers.tiny_model import STABLE_DIFFUSION_2, save_tiny_model

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    """A checkpoint to be broken."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def test_stable_diffusion_1_makes_the_pictures_of_diffusers(pipe):
    result = pipe(SOURCE, TARGET, method="plain", num_inference_steps=4)
    assert grey_levels(result.source_image, by_diffusers(pipe, SOURCE, 4)) <= 1
    assert grey_levels(result.target_image, by_diffusers(pipe, TARGET, 4)) <= 1


def test_stable_diffusion_2_loads_and_edits(tmp_path):
    folder = save_tiny_model(tmp_path, unet=STABLE_DIFFUSION_2, prediction_type="v_prediction")
    pipe = AdapEditPipeline.from_pretrained(folder)
    result = pipe(SOURCE, TARGET, num_inference_steps=3)
    assert grey_levels(result.source_image, by_diffusers(pipe, SOURCE, 3)) <= 1
    assert grey_levels(result.target_image, result.source_image) > 1


def test_half_precision(tiny_folder):
    pipe = AdapEditPipeline.from_pretrained(tiny_folder, torch_dtype=torch.bfloat16)
    result = pipe(SOURCE, TARGET, num_inference_steps=2)
    assert np.asarray(result.target_image).std() > 5


def test_a_scheduler_of_ones_own(tiny_folder):
    from diffusers import EulerAncestralDiscreteScheduler, PNDMScheduler

    pipe = AdapEditPipeline.from_pretrained(tiny_folder, scheduler=EulerAncestralDiscreteScheduler())
    result = pipe(SOURCE, SOURCE, num_inference_steps=3)
    assert grey_levels(result.source_image, result.target_image) <= 1
    assert result.made_with["scheduler"] == "EulerAncestralDiscreteScheduler"
    with pytest.raises(AdapEditError, match="PNDMScheduler .*these work: DDIM"):
        AdapEditPipeline.from_pretrained(tiny_folder, scheduler=PNDMScheduler())
    with pytest.raises(AdapEditError, match="PNDMScheduler .*these work: DDIM"):
        pipe.scheduler = PNDMScheduler()


def test_assigning_a_scheduler_takes_effect(tiny_folder):
    from diffusers import EulerDiscreteScheduler

    pipe = AdapEditPipeline.from_pretrained(tiny_folder)
    pipe.scheduler = scheduler = EulerDiscreteScheduler(steps_offset=1)
    assert pipe.scheduler is scheduler
    given = AdapEditPipeline.from_pretrained(tiny_folder, scheduler=EulerDiscreteScheduler(steps_offset=1))
    one, other = (p(SOURCE, TARGET, num_inference_steps=3) for p in (pipe, given))
    assert grey_levels(one.target_image, other.target_image) == 0


def test_what_a_tokenizer_kept_of_its_last_use_ends_with_loading(copy):
    """Threads share it: the first of them would otherwise change it under the others."""
    tokenizer = CLIPTokenizer.from_pretrained(copy / "tokenizer")
    tokenizer("a dog", padding="max_length", max_length=9, truncation=True)
    tokenizer.save_pretrained(copy / "tokenizer")
    model = AdapEditPipeline.from_pretrained(copy).model
    assert model.unconditional_ids().shape == (1, model.max_tokens)
    for loaded in (model.tokenizer, load_vocabulary(copy).tokenizer):
        assert loaded.backend_tokenizer.padding is None and loaded.backend_tokenizer.truncation is None


def refused(folder: Path | str, message: str, **options: object) -> None:
    with pytest.raises(ModelError, match=message) as error:
        AdapEditPipeline.from_pretrained(folder, **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_what_is_no_checkpoint(tmp_path, copy):
    refused(tmp_path / "nowhere", "there is no model at .*give 'builtin', a folder")
    refused(tmp_path, r"is no Stable Diffusion checkpoint .*no tokenizer.*save_pretrained")
    shutil.rmtree(copy / "vae")
    refused(copy, "no vae")


def test_a_hub_that_is_out_of_reach_is_said_at_once(monkeypatch):
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr("socket.create_connection", unreachable)
    monkeypatch.setattr("adapedit.checkpoints.getproxies", dict)
    refused("some-owner/some-model", "no folder 'some-owner/some-model', and the hub .* can't be reached")


def test_of_a_hubs_model_nothing_is_fetched_but_what_is_read(tiny_folder, monkeypatch):
    """Stands in for the hub's client; a model that was fetched is checked as any folder."""
    asked: dict[str, object] = {}
    monkeypatch.setattr("socket.create_connection", lambda *args, **kwargs: socket.socket())
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **options: asked.update(options) or str(tiny_folder)
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    model = AdapEditPipeline.from_pretrained("some-owner/some-model").model
    assert model.name == "some-owner/some-model" and not asked["local_files_only"]
    assert "unet/*.safetensors" in asked["allow_patterns"]  # type: ignore[operator]
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: 1 / 0)
    refused("some-owner/some-model", r"'some-owner/some-model' can't be fetched \(division by zero\)")


@pytest.mark.parametrize("keep", [0, 4, 300, 0.5, -100])
def test_truncated_weights(copy, keep):
    path = copy / WEIGHTS
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    refused(copy, "unet.*safetensors is corrupt or cut short .*copy it again")


def test_corrupt_weights(copy):
    path = copy / WEIGHTS
    weights, data = load_file(path), path.read_bytes()
    path.write_bytes(b"\xff" * 200 + data[200:])
    refused(copy, "corrupt or cut short")
    name = sorted(weights)[5]
    save_file({key: value for key, value in weights.items() if key != name}, path, {"format": "pt"})
    refused(copy, f"unet of model .* lacks 1 of its weights, {name} among them; copy the model again")
    weights[name].view(-1)[0] = torch.nan
    save_file(weights, path, {"format": "pt"})
    refused(copy, f"numbers in {name} that are none")
    weights[name] = weights[name][..., :1].contiguous()
    save_file(weights, path, {"format": "pt"})
    refused(copy, "unet of model .* can't be loaded: ")


def test_weights_that_the_text_encoder_lacks(copy):
    path = copy / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    weights.pop(sorted(weights)[2])
    save_file(weights, path, {"format": "pt"})
    refused(copy, "text_encoder of model .* lacks 1 of its weights")


def test_pickled_weights_are_never_read(copy):
    (copy / WEIGHTS).rename(copy / "unet" / "diffusion_pytorch_model.bin")
    refused(copy, "no .safetensors file and pickled weights are never read")


def test_broken_configurations(copy):
    (copy / "unet" / "config.json").write_text("{")
    refused(copy, "unet/config.json: Invalid JSON.*copy this one again")


def changed(folder: Path, part: str, **values: object) -> None:
    path = folder / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        (
            "vae",
            {"layers_per_block": 1_000_000},
            "layers_per_block: .*less than or equal to 64, got 1000000;",
        ),
        (
            "unet",
            {"in_channels": 7},
            "in_channels: wanted 4, 8 for InstructPix2Pix, or 9 for inpainting, got 7",
        ),
        (
            "vae",
            {"latent_channels": 16},
            "out_channels: wanted the VAE's 16 latent channels, got 4",
        ),
        ("vae", {"scaling_factor": None}, "scaling_factor: .*valid number, got None"),
        (
            "vae",
            {"_class_name": "AutoencoderTiny"},
            "_class_name: .*'AutoencoderKL', got 'AutoencoderTiny'",
        ),
        ("unet", {"sample_size": "x"}, "sample_size: .*valid integer, got 'x'"),
        (
            "unet",
            {"cross_attention_dim": 7},
            "cross_attention_dim: wanted the text encoder's 32, got 7",
        ),
        (
            "text_encoder",
            {"num_attention_heads": 3},
            "num_attention_heads: wanted a divisor of the hidden_size 32, got 3",
        ),
    ],
)
def test_what_can_not_be_edited_is_refused_before_weights_are_read(copy, monkeypatch, part, values, message):
    monkeypatch.setattr("adapedit.loading.read_part", lambda *args, **options: pytest.fail("it was read"))
    changed(copy, part, **values)
    refused(copy, f"config.json: {message}")


def test_an_unknown_token_that_is_none_is_refused(copy):
    path = copy / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "unk_token": ""}))
    refused(copy, "the tokenizer of model .* can't be loaded: maximum recursion depth exceeded")


CASES = [json.loads(line) for line in (Path(__file__).parents[1] / "data" / "files.jsonl").open()]


@pytest.mark.parametrize("case", [case for case in CASES if case["of"] == "checkpoint"], ids=str)
def test_each_field_that_failed_once_is_refused_before_weights_are_read(copy, monkeypatch, capfd, case):
    monkeypatch.setattr("adapedit.loading.read_part", lambda *args, **options: pytest.fail("it was read"))
    path = copy / case["file"]
    path.write_text(json.dumps({**json.loads(path.read_text()), case["path"][0]: case["value"]}))
    refused(copy, f"{case['file']}: {case['path'][0]}[.:]")
    assert run(["edit", SOURCE, TARGET, "--model", str(copy)]) == USER_ERROR
    assert capfd.readouterr().err.count("\n") == 1


FILES = (
    *(f"{part}/config.json" for part in ("unet", "vae", "text_encoder")),
    "tokenizer/tokenizer_config.json",
    "scheduler/scheduler_config.json",
    "model_index.json",
)
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 64, 65, 1_000_000, 2**31, 2**63, 10**29, 0.0, 0.5, -1e300, 1e300),
    *(float("nan"), float("inf"), "", "x", "silu", "a" * 10_000, "\ud800", [], [1], [0] * 9, [[]], ["x"], {}),
    *({"a": {}}, [1e9], [-1, 2], [8, 16], [16, 8]),
)


def fuzzed(folder: Path, file: str, field: int, value: object, *, whole: bool) -> None:
    """With a field of a file changed the model loads and edits, or is refused in a line.

    whole: load it also where nothing that is built from the file has changed.
    """
    path, usual = folder / file, read_configs(folder)
    before = path.read_text()
    fields = json.loads(before)
    fields[sorted(fields)[field % len(fields)]] = value
    path.write_text(json.dumps(fields))
    try:
        locate(folder)
        read = read_configs(folder)
        if whole or read.fields != usual.fields:
            AdapEditPipeline.from_pretrained(folder)(SOURCE, TARGET, num_inference_steps=1)
    except AdapEditError as error:
        assert "\n" not in str(error)
    finally:
        path.write_text(before)


any_field = given(st.sampled_from(FILES), st.integers(0, 100), st.sampled_from(ODD))
calm: dict[str, Any] = {"derandomize": True, "database": None, "deadline": None}
calm["suppress_health_check"] = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=300, **calm)
@any_field
def test_configurations_fuzzed(copy, file, field, value):
    fuzzed(copy, file, field, value, whole=False)


@pytest.mark.slow
@settings(max_examples=2000, **calm)
@any_field
def test_configurations_fuzzed_for_long(copy, file, field, value):
    fuzzed(copy, file, field, value, whole=True)


def test_a_size_of_two_sides_is_the_smaller(copy):
    changed(copy, "unet", sample_size=[8, 16])
    assert AdapEditPipeline.from_pretrained(copy).model.latent_size == 8


def test_weights_that_have_no_place_are_said(copy):
    path = copy / WEIGHTS
    weights = load_file(path)
    save_file({**weights, "up.lora_A.weight": torch.ones(1)}, path, {"format": "pt"})
    refused(copy, "unet of model .* has 1 weights that it has no place for, up.lora_A.weight .*merge it")


@pytest.mark.parametrize("family", ["StableDiffusion3Pipeline", "FluxPipeline"])
def test_other_families_are_refused_by_name(copy, family):
    (copy / "model_index.json").write_text(json.dumps({"_class_name": family}))
    refused(copy, f"is a checkpoint of .*{family}.*not supported yet")


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_devices_that_are_not_there(tiny_folder, device):
    refused(tiny_folder, f"device '{device}' can't be used here .*use 'cpu'", device=device)


def test_facts_beside_a_model(copy):
    facts = {
        "map_divisor": 1,
        "guidance_scale": 3.0,
        "known_words": [*SOURCE.split(), "sitting"],
        "defaults": {"adapedit": {"lambda_tau": 0.7, "lambda_s": 0.9}},
    }
    (copy / "adapedit.json").write_text(json.dumps(facts))
    pipe = AdapEditPipeline.from_pretrained(copy)
    result = pipe(SOURCE, TARGET, num_inference_steps=2, lambda_s=0.5)
    assert result.request.guidance_scale == 3.0
    assert (result.request.method.lambda_tau, result.request.method.lambda_s) == (0.7, 0.5)  # type: ignore[union-attr]
    with pytest.raises(
        AdapEditError, match="target prompt has 'blue', a word .* does not know; it knows: a, red, dog"
    ):
        pipe(SOURCE, "a blue dog")
    # The sign is what is wrong, not the word that it stands at.
    with pytest.raises(AdapEditError, match="target prompt has ',', a word .* does not know"):
        pipe(SOURCE, "a red dog, standing")
    assert load_vocabulary(copy).max_tokens == 20


@pytest.mark.parametrize(
    "facts",
    ["{", "[]", '{"map_divisor": "x"}', '{"nonsense": 1}', '{"defaults": {"adapedit": {"lambda_tau": -1}}}'],
)
def test_facts_that_can_not_be_used(copy, facts):
    (copy / "adapedit.json").write_text(facts)
    refused(copy, "adapedit.json: .*; correct it or remove it")


def test_no_facts_are_those_of_the_paper(tmp_path):
    assert ModelFacts.read(tmp_path) == ModelFacts(guidance_scale=7.5, self_divisor=4)


def test_an_old_scheduler_is_read_as_diffusers_pipelines_read_it(tmp_path):
    folder = save_tiny_model(tmp_path / "old", steps_offset=0, clip_sample=True)
    for one in (None, DDIMScheduler(steps_offset=0, clip_sample=True)):
        config = load_model(folder, scheduler=one).scheduler.config
        assert (config.steps_offset, config.clip_sample) == (1, False)


def moved(folder: Path, part: str, variant: str) -> None:
    (path,) = (folder / part).glob("*.safetensors")
    path.rename(path.with_name(path.name.replace(".safetensors", f".{variant}.safetensors")))


def test_a_variant_is_read_where_a_part_has_it(copy, tmp_path):
    """The UNet's non-EMA weights beside its others; what has no variant is read without."""
    usual = load_model(copy).components["unet"].conv_out.weight
    weights = load_file(copy / WEIGHTS)
    weights["conv_out.weight"] = weights["conv_out.weight"] * 2
    save_file(weights, copy / WEIGHTS.replace(".safetensors", ".non_ema.safetensors"), {"format": "pt"})
    pipe = AdapEditPipeline.from_pretrained(copy, variant="non_ema")
    assert torch.equal(pipe.components["unet"].conv_out.weight, 2 * usual)
    assert torch.equal(load_model(copy).components["unet"].conv_out.weight, usual)
    theirs = StableDiffusionPipeline.from_pretrained(copy, variant="non_ema", safety_checker=None)
    assert torch.equal(theirs.unet.conv_out.weight, 2 * usual)
    refused(copy, "has no weights of variant 'fp16'; leave variant out", variant="fp16")


def test_a_variant_alone_is_read_when_it_is_named(copy):
    for part in ("unet", "vae", "text_encoder"):
        moved(copy, part, "fp16")
    refused(copy, r"text_encoder has model.fp16.safetensors alone, a variant; give variant='fp16'")
    assert AdapEditPipeline.from_pretrained(copy, variant="fp16").model.name == str(copy)


def test_of_a_hub_a_revision_and_a_variant_are_asked_for(tiny_folder, monkeypatch, copy):
    asked: list[dict[str, Any]] = []
    moved(copy, "unet", "fp16")

    def fetched(name: str, **options: Any) -> str:
        asked.append(options)
        return str(copy)

    monkeypatch.setattr("socket.create_connection", lambda *args, **kwargs: socket.socket())
    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    pipe = AdapEditPipeline.from_pretrained("some-owner/some-model", variant="fp16", revision="main")
    assert pipe.model.name == "some-owner/some-model" and all(one["revision"] == "main" for one in asked)
    assert "unet/*.fp16*.safetensors" in asked[0]["allow_patterns"]

    def nothing(name: str, **options: Any) -> str:
        assert options["local_files_only"]
        raise OSError("not in the cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", nothing)
    refused("some-owner/other", "nothing of that name was fetched before", local_files_only=True)


@pytest.mark.parametrize("steps", [3, 10])
def test_zero_terminal_snr_and_v_prediction_are_those_of_diffusers(tmp_path, steps):
    noise = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    pipe = AdapEditPipeline.from_pretrained(save_tiny_model(tmp_path / "zero", **noise))
    config = pipe.scheduler.config
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)
    result = pipe(SOURCE, TARGET, num_inference_steps=steps)
    assert grey_levels(result.source_image, by_diffusers(pipe, SOURCE, steps)) <= 1
    assert grey_levels(result.target_image, result.source_image) > 1


def test_a_checkpoints_safety_checker_is_said_to_be_off(copy):
    index = json.loads((copy / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.warns(EditWarning, match="safety checker .* is not run here"):
        pipe = AdapEditPipeline.from_pretrained(copy)
    assert pipe.model.made_with["safety_checker"] == "off"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AdapEditPipeline.from_pretrained(copy, safety_checker=None)
