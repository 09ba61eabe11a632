"""The PyTorch runner: names, outputs, processors; the compiled one compiles once for a number of rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from adapedit_engine.models.controls import SELF_NAMES
from adapedit_engine.models.unet import OUTPUT_NAMES, ControlledUNet
from adapedit_engine.plan import SelfEdit
from adapedit_engine.runners.base import Capabilities, RunnerError
from adapedit_engine.runners.pytorch import CompiledRunner, PyTorchRunner
from adapedit_engine.scheduler import denoise
from tests.engine.tiny import (
    SIDE,
    TEXT,
    TOKENS,
    edit_plan,
    largest,
    noise,
    plan,
    self_interval,
    there,
    tiny_unet,
)


def inputs(runner: PyTorchRunner) -> dict[str, torch.Tensor]:
    prompt = runner.condition(noise(2, TOKENS, TEXT, seed=2))
    return {"sample": noise(2, 4, SIDE, SIDE), "timestep": torch.ones(2), **prompt}


def test_keys_and_values_are_projected_once_per_edit():
    unet = tiny_unet()
    counted = []
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    attention.to_k.register_forward_hook(lambda *_: counted.append(1))
    with PyTorchRunner(unet) as runner:
        denoise([plan(1)], runner)
    assert len(counted) == 1


def test_outputs_are_those_asked_for():
    with PyTorchRunner(tiny_unet()) as runner:
        assert tuple(runner.infer(inputs(runner))) == OUTPUT_NAMES
        assert list(runner.infer(inputs(runner), ["noise_pred"])) == ["noise_pred"]
        assert list(runner.infer(inputs(runner), ["visual_features"])) == ["visual_features"]


def test_processors_are_in_place_while_open_and_may_be_opened_twice():
    unet = tiny_unet()
    before = dict(unet.attn_processors)
    with PyTorchRunner(unet) as runner:
        with runner:
            pass
        assert all(now is not before[name] for name, now in unet.attn_processors.items())
        runner.infer(inputs(runner))
    assert all(now is before[name] for name, now in unet.attn_processors.items())
    with pytest.raises(RunnerError, match="closed: use it inside `with runner:`"):
        runner.infer(inputs(runner))


def test_low_precision_runs_with_latents_in_float32():
    unet = tiny_unet()
    with PyTorchRunner(unet) as runner:
        (exact,) = denoise([plan(1, collect=True)], runner)
    with PyTorchRunner(unet.to(torch.bfloat16)) as runner:
        assert runner.dtype == torch.bfloat16
        (rough,) = denoise([plan(1, collect=True)], runner)
    assert rough.latents.dtype == there(rough.maps).dtype == torch.float32
    assert largest(rough.latents, exact.latents) < 0.2 * float(exact.latents.abs().max())


def test_specs_are_facts_of_the_controlled_unet():
    unet = tiny_unet()
    assert PyTorchRunner(unet, map_divisor=1).specs == ControlledUNet(unet, map_divisor=1).specs


def test_what_it_can_do_is_said_before_it_is_opened():
    runner = PyTorchRunner(tiny_unet())
    assert (runner.name, runner.capabilities) == ("pytorch", Capabilities(gradients=True))
    compiled = CompiledRunner(tiny_unet(), backend="eager").capabilities
    assert compiled.all_controls and compiled.rows is not None and compiled.rows[:4] == (1, 2, 4, 8)


def test_rows_are_taken_in_the_layers_named_alone():
    """None: in all of them; a layer that is left out is as if every row were its own there."""
    with PyTorchRunner(tiny_unet()) as runner:
        layers = len(runner.specs.self_layers)
        own = torch.arange(2).repeat(layers, 1)
        taken = own.clone()
        taken[1:3, 1] = 0
        crossed = torch.full_like(own, 0)  # taken everywhere, if it were looked at

        def predict(rows: torch.Tensor, self_layers: Any = None) -> torch.Tensor:
            given = {**inputs(runner), **dict.fromkeys(SELF_NAMES, rows)}
            return runner.infer(given, ["noise_pred"], self_layers=self_layers)["noise_pred"]

        plain, some = predict(own), predict(taken)
        assert not torch.equal(plain, some)
        assert torch.equal(some, predict(taken, dict.fromkeys(SELF_NAMES, (1, 2))))
        assert torch.equal(plain, predict(crossed, {}))
        mixed = torch.where(torch.arange(layers)[:, None] == 1, taken, own)
        assert torch.equal(predict(mixed), predict(taken, dict.fromkeys(SELF_NAMES, (1,))))


class Shortened(CompiledRunner):
    """Adds up its inputs in place of a UNet, which takes a while to be traced."""

    def _predict(self, sample: Any, timestep: Any, controls: Any, projected: Any, conditioning: Any) -> Any:
        used = [timestep, *controls.as_dict().values(), *(tensor for pair in projected for tensor in pair)]
        return sample * sum(tensor.sum() for tensor in used).tanh(), None, None


@pytest.fixture
def counter() -> CompileCounter:
    torch.compiler.reset()
    return CompileCounter()


def test_methods_share_a_compilation(counter: CompileCounter) -> None:
    unet = tiny_unet()
    shared = self_interval(unet, 0.5)
    plans = [
        edit_plan(1, 2),
        plan(1, 2),
        edit_plan(1, 2, self_attention=SelfEdit(query=shared)),
        edit_plan(1, 2, self_attention=SelfEdit(query=shared, key=shared)),
        edit_plan(1, 2, self_attention=SelfEdit(key=shared, value=shared)),
    ]
    with Shortened(unet, backend=counter) as runner:
        for each in plans:
            denoise([each], runner)
        denoise([plan(1), plan(2)], runner)  # as many rows, of two edits
    assert counter.frame_count == 1


def test_more_numbers_of_rows_than_pytorch_allows_for(counter: CompileCounter) -> None:
    with (
        torch._dynamo.config.patch(recompile_limit=1),
        Shortened(tiny_unet(), backend=counter) as runner,
    ):
        for tracks in (1, 2, 3):
            denoise([plan(*range(tracks))], runner)
        assert torch._dynamo.config.recompile_limit == 1
    assert counter.frame_count == 3
