"""The training stages: they learn, they resume exactly, and their parts fit together."""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import nn

from adapedit.metrics.looking import area_under_curve
from adapedit.scenes.captions import VOCABULARY, caption
from adapedit.scenes.reader import HEADS, Reader, labels
from adapedit.training.__main__ import STAGES
from adapedit.training.checkpoint import Trainee
from adapedit.training.data import GRID, RenderedScenes, build, scene_at
from adapedit.training.generator import FIGURE_WEIGHT, cell_weights, encode_scenes, map_loss, word_targets
from adapedit.training.reader import jitter, loss_of, to_pixels
from adapedit.training.text import MAX_TOKENS, make_tokenizer
from adapedit.training.vae import make_vae
from adapedit_kernels.errors import AdapEditError


def test_every_known_word_is_one_token() -> None:
    tokenizer = make_tokenizer(VOCABULARY)
    assert all(tokenizer.tokenize(word) == [word + "</w>"] for word in VOCABULARY)
    ids = tokenizer("A small RED dog", padding="max_length").input_ids
    assert len(ids) == MAX_TOKENS and ids[0] == tokenizer.bos_token_id and ids[5] == tokenizer.eos_token_id


def test_figures_weigh_alike_whatever_their_size() -> None:
    masks = torch.zeros(2, 2, GRID, GRID)
    masks[0, 0, :2, :2], masks[0, 1, 4:12, 4:12] = 1, 1  # the second scene has no figure
    weights = cell_weights(masks)
    assert torch.allclose(weights.mean((1, 2, 3)), torch.ones(2))
    background = weights[0, 0, -1, -1]
    extra = [float(((weights[0, 0] - background) * masks[0, figure]).sum()) for figure in (0, 1)]
    assert extra == pytest.approx([FIGURE_WEIGHT * float(background)] * 2, rel=1e-4)
    assert torch.equal(weights[1], torch.ones(1, GRID, GRID))


def test_tokens_are_told_where_to_look() -> None:
    scene = next(s for s in map(scene_at, range(100)) if len(s.figures) == 2)
    words = caption(scene)
    masks = torch.rand(2, GRID, GRID)
    targets, valid = word_targets(words, masks, MAX_TOKENS)
    for position, word in enumerate(words.words, start=1):
        assert bool(valid[position]) == (word.role != "function")
        if word.role == "kind":
            assert word.figure is not None
            assert torch.equal(targets[:, position], masks[word.figure].flatten())
        if word.role == "place":
            assert torch.equal(targets[:, position], 1 - masks.amax(0).flatten())
    assert not valid[0] and not valid[len(words.words) + 1 :].any()


def test_the_map_loss_is_least_where_maps_lie_on_their_masks() -> None:
    targets = torch.zeros(1, 16, 3)
    targets[0, :4, 1] = 1
    valid = torch.tensor([[False, True, False]])
    weight = torch.ones(1)

    def loss(maps: torch.Tensor) -> float:
        return float(map_loss(maps, targets, valid, weight))

    on, flat, one_pixel, off = (torch.full((1, 16, 3), 1e-4) for _ in range(4))
    on[0, :4, 1], flat[0, :, 1], one_pixel[0, 0, 1], off[0, 4:8, 1] = 0.5, 0.5, 0.5, 0.5
    assert loss(on) < loss(one_pixel) < loss(off)
    assert loss(on) < 0.01 < loss(flat) < loss(off)


def test_training_resumes_where_it_stopped(tmp_path: Path) -> None:
    def make(path: Path) -> tuple[nn.Module, Trainee]:
        torch.manual_seed(0)
        module = nn.Linear(3, 2)
        return module, Trainee({"m": module}, path, steps=8, learning_rate=0.1, warm_up=2)

    def train(module: nn.Module, trainee: Trainee, until: int) -> None:
        while trainee.step < until:
            inputs = torch.full((4, 3), float(trainee.step))
            module(inputs).square().mean().backward()
            trainee.update()

    whole, trainee = make(tmp_path / "a.safetensors")
    train(whole, trainee, 8)
    first, stopped = make(tmp_path / "b.safetensors")
    train(first, stopped, 5)
    stopped.save()
    again, resumed = make(tmp_path / "b.safetensors")
    assert resumed.step == 5
    train(again, resumed, 8)
    assert torch.equal(whole.weight, again.weight)
    assert all(torch.equal(trainee.averaged[key], resumed.averaged[key]) for key in trainee.averaged)
    assert not list(tmp_path.glob("*.part"))


def test_a_finished_reader_is_written_again_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = import_module("adapedit.training.reader")
    monkeypatch.setattr(stage, "accuracy", lambda reader: {})
    build(tmp_path / "scenes", 4, workers=1)
    state, out = tmp_path / "state.safetensors", tmp_path / "reader.safetensors"
    arguments = ["--scenes", str(tmp_path / "scenes"), "--state", str(state), "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["reader", *arguments, "--steps", "2", "--batch", "2"])
    stage.main()
    trained = out.read_bytes()
    out.unlink()
    stage.main()
    assert out.read_bytes() == trained


def test_a_state_without_the_statistics_of_its_layers_is_refused(tmp_path: Path) -> None:
    module, path = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), tmp_path / "state.safetensors"
    Trainee({"m": module}, path, steps=8, learning_rate=0.1).save()
    old = {key: value for key, value in load_file(path).items() if not key.startswith("buffer/")}
    assert len(old) == len(load_file(path)) - 3
    save_file(old, path, {"step": "5"})
    with pytest.raises(AdapEditError, match="without the buffer m.1.running_mean, .* remove the file"):
        Trainee({"m": module}, path, steps=8, learning_rate=0.1)


def test_rendered_scenes_are_written_whole(tmp_path: Path) -> None:
    build(tmp_path, 6, workers=1, chunk=4)
    scenes = RenderedScenes.open(tmp_path)
    assert scenes.images.shape == (6, 128, 128, 3) and scenes.masks.shape == (6, 2, GRID, GRID)
    assert (scenes.images.reshape(6, -1).std(1) > 10).all()
    assert not list(tmp_path.glob("*.part*"))


def test_latents_that_were_cut_short_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path, 3, workers=1)
    scenes, path = RenderedScenes.open(tmp_path), tmp_path / "latents.npy"
    vae = make_vae().eval()
    save = np.save

    def interrupted(file: Path, array: np.ndarray) -> None:
        save(file, array[:1])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(np, "save", interrupted)
        encode_scenes(vae, scenes, path, 2)
    assert not path.exists()
    two = encode_scenes(vae, scenes, path, 2)
    assert two.shape == (2, 8, GRID, GRID)
    # Those of another number of scenes are no use, those of the same are read.
    three = encode_scenes(vae, scenes, path, 3)
    assert len(three) == 3
    # In bfloat16, where the processor has it, batches of two and of three round differently.
    assert np.allclose(three[:2], two, atol=0.02)
    monkeypatch.setattr(type(vae), "encode", lambda *args: pytest.fail("encoded again"))
    assert np.array_equal(encode_scenes(vae, scenes, path, 9), three)


@pytest.fixture
def small_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        latent_channels=2,
        norm_num_groups=2,
    ).requires_grad_(False)


def test_latents_of_another_autoencoder_or_of_other_scenes_are_made_again(
    tmp_path: Path, small_vae: AutoencoderKL
) -> None:
    build(tmp_path, 2, workers=1)
    scenes, path = RenderedScenes.open(tmp_path), tmp_path / "latents.npy"
    first = encode_scenes(small_vae, scenes, path, 2)
    small_vae.encoder.conv_in.bias.add_(1)
    other = encode_scenes(small_vae, scenes, path, 2)
    assert not np.array_equal(first, other) and np.array_equal(np.load(path), other)
    np.save(path, first)
    assert np.array_equal(encode_scenes(small_vae, scenes, path, 2), first)
    # Of other scenes, and of nobody knows what.
    assert np.array_equal(encode_scenes(small_vae, replace(scenes, seed=5), path, 2), other)
    np.save(path, first)
    path.with_suffix(".json").unlink()
    assert np.array_equal(encode_scenes(small_vae, scenes, path, 2), other)


def test_edits_of_another_autoencoder_are_made_again(
    tmp_path: Path, small_vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, path, folder = import_module("adapedit.training.pairs"), tmp_path / "edits.npy", tmp_path / "vae"
    monkeypatch.setattr(stage, "ProcessPoolExecutor", lambda workers: ThreadPoolExecutor(1))
    chunk, made = stage._chunk, []

    def counted(span: tuple[int, int, int, Path]) -> np.ndarray:
        made.append(span[:2])
        if len(made) == 2:
            raise KeyboardInterrupt
        return chunk(span)

    monkeypatch.setattr(stage, "_chunk", counted)
    small_vae.save_pretrained(folder)
    with pytest.raises(KeyboardInterrupt):
        stage.build(path, folder, 2, chunk=1)
    small_vae.encoder.conv_in.bias.add_(1)
    small_vae.save_pretrained(folder)
    stage.build(path, folder, 2, chunk=1)
    assert made == [(0, 1), (1, 2), (0, 1), (1, 2)] and not path.with_suffix(".parts").exists()
    stage.build(path, folder, 2, chunk=1)
    assert len(made) == 4 and np.load(path).shape[:2] == (2, stage.EDITS)
    small_vae.encoder.conv_in.bias.add_(1)
    small_vae.save_pretrained(folder)
    stage.build(path, folder, 1, chunk=1)
    stage.build(path, folder, 2, chunk=1)
    assert made[4:] == [(0, 1), (0, 1), (1, 2)]


@pytest.mark.parametrize(("stage", "arguments"), STAGES)
def test_every_stage_takes_what_make_train_gives_it(
    stage: str, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Parsed(Exception):
        pass

    parse = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser) -> None:
        parse(parser, list(arguments))
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(Parsed):
        import_module(f"adapedit.training.{stage}").main()


def test_the_reader_learns_from_rendered_scenes() -> None:
    from adapedit.scenes.render import render

    torch.manual_seed(0)
    scenes = [scene_at(i) for i in range(8)]
    pixels = to_pixels(np.stack([render(scene).image for scene in scenes]))
    truth = torch.tensor([[labels(scene)[name] for name in HEADS] for scene in scenes])
    reader = Reader()
    optimizer = torch.optim.Adam(reader.parameters(), 3e-3)
    first = loss_of(reader(pixels), truth).item()
    for _ in range(25):
        optimizer.zero_grad()
        loss = loss_of(reader(pixels), truth)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3 * first
    assert jitter(pixels).shape == pixels.shape


@pytest.mark.parametrize(
    ("scores", "area"), [([3, 2, 1, 0], 1.0), ([0, 1, 2, 3], 0.0), ([1, 1, 1, 1], 0.5), ([3, 1, 2, 0], 0.75)]
)
def test_area_under_curve(scores: list[float], area: float) -> None:
    inside = np.array([True, True, False, False])
    assert area_under_curve(np.array(scores, float), inside) == area
    assert np.isnan(area_under_curve(np.array(scores, float), np.zeros(4, bool)))


def test_asking_what_would_be_trained_trains_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training = import_module("adapedit.training.__main__")
    monkeypatch.setattr(training.subprocess, "run", lambda *args, **kwargs: pytest.fail("a stage was begun"))
    for arguments, code in ((["--help"], 0), (["reader"], 2)):
        monkeypatch.setattr("sys.argv", ["training", *arguments])
        with pytest.raises(SystemExit) as ended:
            training.main()
        assert ended.value.code == code
    assert "adapedit.training.generator" in capsys.readouterr().out
