import pytest
import torch

from adapedit_engine import OUTPUT_NAMES, ControlledUNet, PyTorchRunner, RunnerError, denoise
from tests.engine.tiny import SIDE, TEXT, TOKENS, largest, noise, plan, there, tiny_unet


def inputs(runner: PyTorchRunner) -> dict[str, torch.Tensor]:
    prompt = runner.condition(noise(2, TOKENS, TEXT, seed=2))
    return {"sample": noise(2, 4, SIDE, SIDE), "timestep": torch.ones(2), **prompt}


def test_keys_and_values_are_projected_once_per_edit():
    unet = tiny_unet()
    counted = []
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    attention.to_k.register_forward_hook(lambda *_: counted.append(1))
    for project_once, calls in ((True, 1), (False, plan(1).steps)):
        counted.clear()
        with PyTorchRunner(unet, project_once=project_once) as runner:
            denoise([plan(1)], runner)
        assert len(counted) == calls


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


@pytest.mark.parametrize(
    ("changes", "outputs", "message"),
    [
        ({"sample": None}, None, "input 'sample' is missing"),
        ({"key_3": None}, None, r"input 'key_3' is missing: feed what condition\(\) returns"),
        ({"key_0": None}, None, "input 'encoder_hidden_states' is missing"),
        (
            {"source_rows": torch.zeros(2)},
            None,
            "there is no input 'source_rows'; known: sample, timestep, source_row",
        ),
        ({}, ["latents"], "there is no output 'latents'; wanted of noise_pred"),
    ],
)
def test_wrong_names_are_refused(changes, outputs, message: str):
    with PyTorchRunner(tiny_unet()) as runner:
        given = {name: value for name, value in {**inputs(runner), **changes}.items() if value is not None}
        with pytest.raises(RunnerError, match=message):
            runner.infer(given, outputs)


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
