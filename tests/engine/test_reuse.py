"""Steps that reuse what earlier ones computed: cached deep features, and cross-attention that is skipped late."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch

from adapedit_engine import EditPlan, LocalBlend, PlanError, PyTorchRunner, RunnerError, denoise
from adapedit_engine.loop import begin, tick
from adapedit_engine.reuse import Call, Reuse, call_at
from adapedit_engine.scheduler import EngineExecutor, Scheduler
from tests.engine.tiny import STEPS, TOKENS, ddim, edit_plan, largest, noise, plan, prompts, there, tiny_unet


class Counting(PyTorchRunner):
    """Notes the rows of every call, with the kind of those that are not exact."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.calls: list[tuple[int, Call]] = []

    def infer(self, inputs, outputs=None):
        self.calls.append((len(inputs["timestep"]), Call()))
        return super().infer(inputs, outputs)

    def infer_reusing(self, inputs, outputs, reuse):
        self.calls.append((len(inputs["timestep"]), reuse.call))
        return super().infer_reusing(inputs, outputs, reuse)


@pytest.fixture
def runner():
    with Counting(tiny_unet(), map_divisor=1) as opened:
        yield opened


def blended(*seeds: int, **changes) -> EditPlan:
    blend = LocalBlend(token_weights=torch.ones(len(seeds), TOKENS))
    return edit_plan(*seeds, collect=True, local_blend=blend, **changes)


def inputs_of(runner: PyTorchRunner) -> dict[str, torch.Tensor]:
    text = prompts(1, 2).flatten(0, 1)
    return {
        "sample": noise(4, 4, 8, 8, seed=3),
        "timestep": torch.tensor([900.0, 900.0, 30.0, 30.0]),
        **runner.condition(text),
    }


def test_which_step_takes_which_call():
    def calls(steps: int, interval: int, until: float) -> str:
        made = [call_at(i, steps, interval, until) for i in range(steps)]
        return " ".join(
            "".join(("s" * c.shallow, "g" * c.gated, "d" * c.keeps_deep, "c" * c.keeps_cross)) or "-"
            for c in made
        )

    assert calls(4, 1, 1.0) == "- - - -"
    assert calls(7, 3, 1.0) == "d s s d s s -"
    assert calls(5, 1, 0.4) == "- c g g g"
    assert calls(5, 1, 0.0) == "c g g g g"  # the first step has nothing to reuse
    assert calls(6, 2, 0.5) == "d s dc sg gd sg"
    assert calls(6, 4, 0.5) == "dc s s sg gd sg"


def test_the_shallow_part_on_its_own_features_is_the_whole(runner):
    inputs = inputs_of(runner)
    kept = Reuse(call=Call(keeps_deep=True))
    whole = runner.infer_reusing(inputs, ("noise_pred",), kept)["noise_pred"]
    shallow = Reuse(call=Call(shallow=True), deep=kept.kept_deep)
    again = runner.infer_reusing(inputs, ("noise_pred",), shallow)["noise_pred"]
    assert torch.equal(again, whole)
    assert torch.equal(whole, runner.infer(inputs, ("noise_pred",))["noise_pred"])
    other = Reuse(call=Call(shallow=True), deep=there(kept.kept_deep).flip(0))
    assert largest(runner.infer_reusing(inputs, ("noise_pred",), other)["noise_pred"], whole) > 1e-3


def test_gated_on_its_own_outputs_is_the_whole(runner):
    inputs = inputs_of(runner)
    kept = Reuse(call=Call(keeps_cross=True))
    whole = runner.infer_reusing(inputs, ("noise_pred",), kept)["noise_pred"]
    assert len(kept.kept_cross) == len(runner.specs.cross_layers)
    gated = Reuse(call=Call(gated=True), cross=tuple(kept.kept_cross))
    blind = {**inputs, **runner.condition(prompts(5, 6).flatten(0, 1))}  # the words are not looked at
    assert torch.equal(runner.infer_reusing(blind, ("noise_pred",), gated)["noise_pred"], whole)


def test_features_are_those_of_the_own_call_while_another_thread_calls_the_same_unet(runner):
    inputs = inputs_of(runner)
    other = {**inputs, "sample": inputs["sample"].flip(0)[:3], "timestep": inputs["timestep"][:3]}
    other |= runner.condition(prompts(1, 2).flatten(0, 1)[:3])
    alone = Reuse(call=Call(keeps_deep=True))
    runner.infer_reusing(inputs, ("noise_pred",), alone)
    beside = Reuse(call=Call(keeps_deep=True))

    def call_between(*_) -> None:
        # On the way through the first layer, so that the other call is the first to reach the last block.
        hook.remove()
        thread = threading.Thread(target=lambda: runner.infer(other, ("noise_pred",)))
        thread.start()
        thread.join()

    hook = runner.controlled.unet.conv_in.register_forward_hook(call_between)
    runner.infer_reusing(inputs, ("noise_pred",), beside)
    assert torch.equal(there(beside.kept_deep), there(alone.kept_deep))


@pytest.mark.parametrize("up", ["UpBlock2D", "CrossAttnUpBlock2D"])
def test_other_shapes_of_the_last_block(up: str):
    unet = tiny_unet(
        layers_per_block=2,
        up_block_types=("CrossAttnUpBlock2D", up),
        down_block_types=(up.replace("Up", "Down"), "CrossAttnDownBlock2D"),
        center_input_sample=True,
        time_embedding_act_fn="silu",
    )
    with PyTorchRunner(unet) as runner:
        kept = Reuse(call=Call(keeps_deep=True))
        whole = runner.infer_reusing(inputs_of(runner), ("noise_pred",), kept)["noise_pred"]
        shallow = Reuse(call=Call(shallow=True), deep=kept.kept_deep)
        assert torch.equal(
            runner.infer_reusing(inputs_of(runner), ("noise_pred",), shallow)["noise_pred"], whole
        )
    assert not unet.up_blocks[-1].resnets[-1]._forward_pre_hooks


@pytest.mark.parametrize(
    "knobs", [[{"feature_interval": k} for k in (5, 2)], [{"cross_attention_until": c} for c in (0.3, 0.9)]]
)
def test_more_exact_is_closer(runner, knobs):
    schedule = ddim(20)
    exact, far, near = denoise([edit_plan(1, 2, schedule=schedule, **knob) for knob in ({}, *knobs)], runner)
    assert 0 < largest(near.latents, exact.latents) < largest(far.latents, exact.latents)


@pytest.mark.parametrize(
    "changes",
    [
        {"feature_interval": 2},
        {"cross_attention_until": 0.4},
        {"feature_interval": 3, "cross_attention_until": 0.5, "guidance_until": 0.7},
        {"feature_interval": 2, "cross_attention_until": 0.6, "guidance_until": 0.3},
    ],
)
def test_beside_others_is_as_alone(runner, changes):
    plans = [blended(1, 2, **changes), blended(3, 4), blended(5, 6, 7, schedule=ddim(3), **changes)]
    together = denoise(plans, runner)
    for wanted, outcome in zip(plans, together, strict=True):
        (alone,) = denoise([wanted], runner)
        assert largest(alone.latents, outcome.latents) < 1e-4
        assert largest(there(alone.maps), there(outcome.maps)) < 1e-5
    (exact,) = denoise([blended(3, 4)], runner)
    assert largest(exact.latents, together[1].latents) < 1e-4


def test_an_exact_edit_makes_the_calls_that_it_always_made(runner):
    denoise([blended(1, 2)], runner)
    assert runner.calls == [(4, Call())] * STEPS


def test_calls_of_a_mixed_batch(runner):
    denoise([plan(1, feature_interval=2), plan(2)], runner)
    kinds = [
        ("shallow" if call.shallow else "kept" if call.keeps_deep else "exact") for _, call in runner.calls
    ]
    assert kinds == ["kept", "exact", "shallow", "exact"] * 2 + ["exact"]
    assert (
        runner.calls[-1][0] == 4
    )  # the last step has nobody to keep features for, and shares the exact call


def test_maps_are_averages_of_the_steps_that_computed_them(runner):
    (outcome,) = denoise([replace(plan(1, schedule=ddim(4), collect=True), feature_interval=4)], runner)
    state = begin(plan(1, schedule=ddim(4), collect=True), runner)
    (state,) = tick([state], runner)
    assert largest(there(outcome.maps), there(state.map_sum)) < 1e-6
    assert outcome.steps == 4


def test_guidance_that_stops_takes_the_mean_of_the_rows(runner):
    state = begin(plan(1, cross_attention_until=0.4, guidance_until=0.4), runner)
    for _ in range(2):
        before, (state,) = state, tick([state], runner)
    whole = replace(before, tables=begin(plan(1, cross_attention_until=0.4), runner).tables)
    (unhalved,) = tick([whole], runner)
    for kept, rows in zip(state.kept.cross, unhalved.kept.cross, strict=True):
        assert largest(kept, rows.mean(0, keepdim=True)) < 1e-5
    (state,) = tick([state], runner)
    assert runner.calls[-1] == (1, Call(gated=True))


def test_in_the_scheduler(runner):
    scheduler = Scheduler(EngineExecutor(runner), max_rows=8)
    plans = [blended(1, 2, feature_interval=2), blended(3, 4), blended(1, 3, cross_attention_until=0.5)]

    def job(wanted):
        (outcome,) = yield [wanted]
        return outcome

    tickets = []
    for wanted in plans:
        tickets.append(scheduler.submit(job(wanted)))
        scheduler.step()
    scheduler.drain()
    for wanted, ticket in zip(plans, tickets, strict=True):
        (alone,) = denoise([wanted], runner)
        assert largest(ticket.future.result().latents, alone.latents) < 1e-4


@pytest.mark.parametrize(
    ("knob", "said"),
    [({"feature_interval": 2}, "feature_interval=2"), ({"cross_attention_until": 0.5}, "until=0.5")],
)
def test_a_runner_that_keeps_nothing_refuses_before_any_work(runner, knob, said):
    class Graph(Counting):
        supports_reuse = False

    graph = Graph(tiny_unet(), map_divisor=1)
    with graph:
        with pytest.raises(RunnerError, match=rf"{said} was asked for, and runner Graph can't keep features"):
            denoise([plan(1), plan(2, **knob)], graph)
        assert not graph.calls
        with pytest.raises(RunnerError, match="Graph"):
            EngineExecutor(graph).check(plan(1, **knob))


@pytest.mark.parametrize(
    ("knob", "said"),
    [({"feature_interval": 0}, "feature_interval is 0"), ({"cross_attention_until": 1.2}, "until is 1.2")],
)
def test_wrong_values(knob, said):
    with pytest.raises(PlanError, match=said):
        plan(1, **knob)
