"""Training resumes exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from adapedit import AdapEditError
from benchmarks.scenes.trainee import Trainee


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


def test_a_state_without_the_statistics_of_its_layers_is_refused(tmp_path: Path) -> None:
    module, path = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), tmp_path / "state.safetensors"
    Trainee({"m": module}, path, steps=8, learning_rate=0.1).save()
    old = {key: value for key, value in load_file(path).items() if not key.startswith("buffer/")}
    assert len(old) == len(load_file(path)) - 3
    save_file(old, path, {"step": "5"})
    with pytest.raises(AdapEditError, match="without the buffer m.1.running_mean, .* remove the file"):
        Trainee({"m": module}, path, steps=8, learning_rate=0.1)
