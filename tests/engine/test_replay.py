"""A replayed source: fewer rows, the same edits; recordings whole or not at all, within their bound."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from adapedit_engine import Adaptive, EditPlan, LocalBlend, PyTorchRunner, Schedule, denoise, plan_rows
from adapedit_engine.recording import Reach
from adapedit_engine.replay import reach_of, recording_bytes, source_key
from adapedit_engine.trajectories import Trajectories, can_replay
from tests.engine.tiny import STEPS, TOKENS, edit_plan, largest, noise, plan, self_share, there, tiny_unet

UNET = tiny_unet()
LAYERS = 7
PLENTY = 2**30


class Counting(PyTorchRunner):
    """Rows of every call."""

    def __init__(self) -> None:
        super().__init__(UNET)
        self.rows: list[int] = []

    def _infer(self, inputs, outputs, exchange, *rest):
        self.rows.append(len(inputs["timestep"]))
        return super()._infer(inputs, outputs, exchange, *rest)


@pytest.fixture
def runner():
    with Counting() as open_runner:
        yield open_runner


def adaptive(tracks: int = 2) -> Adaptive:
    layers = torch.zeros(LAYERS, tracks, dtype=torch.bool)
    layers[1:3, 1:] = True
    keys = torch.zeros(tracks, TOKENS, dtype=torch.bool)
    keys[1:, 3] = True
    words = torch.tensor([-1, 0, 1, 2, 3, -1]).repeat(tracks, 1)
    return Adaptive(key_tokens=keys, word_of_token=words, self_layers=layers)


def masactrl(*seeds: int) -> EditPlan:
    tracks = len(seeds)
    taken = torch.zeros(STEPS, LAYERS, tracks, dtype=torch.bool)
    taken[1:, 2:, 1:] = True
    every = torch.ones(tracks, dtype=torch.bool)
    own = torch.ones(tracks, TOKENS)
    return edit_plan(*seeds, own_weight=own, self_key=taken, self_value=taken, self_all_rows=every)


PLANS = {
    "cross": edit_plan(0, 1, collect=True),
    "self": edit_plan(0, 1, self_query=self_share(UNET, 0.6), self_key=self_share(UNET, 0.6)),
    "blend": edit_plan(0, 1, local_blend=LocalBlend(token_weights=torch.eye(TOKENS)[:2])),
    "adaptive": edit_plan(0, 1, adaptive=adaptive(), collect=True),
    "all rows": masactrl(0, 1),
    "plain": plan(0, 1, collect=True),
    "several": edit_plan(0, 1, 2, collect=True),
    "late": edit_plan(0, 1, guidance_until=0.5, self_key=self_share(UNET, 0.9)),
    "empty prompts": edit_plan(0, 1, unconditional_steps=noise(STEPS, TOKENS, 24, seed=5)),
    "known source": edit_plan(0, 1, source_latents=noise(STEPS, 4, 8, 8, seed=6), record=True),
}


def run(trajectories: Trajectories, edit: EditPlan, runner, *others: EditPlan):
    with trajectories.attached(edit) as traced:
        return denoise([traced, *others], runner)[0]


def assert_close(one, other):
    for name in ("latents", "maps", "features", "word_steps", "spatial_map", "trajectory"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert largest(a, b) < 2e-4, name


@pytest.mark.parametrize("kind", PLANS)
def test_a_replayed_edit_equals_the_plain_one(kind, runner):
    edit = PLANS[kind]
    (alone,) = denoise([edit], runner)
    trajectories = Trajectories(PLENTY, runner)
    first = run(trajectories, edit, runner)
    assert torch.equal(first.latents, alone.latents)
    runner.rows.clear()
    second = run(trajectories, edit, runner)
    full, late = plan_rows(edit), plan_rows(edit) // 2
    wanted = [full - 2] * STEPS
    if kind == "late":
        wanted = [full - 2] * 3 + [late - 1] * (STEPS - 3)
    assert runner.rows == wanted
    assert torch.equal(second.latents[0], first.latents[0])
    assert_close(second, alone)
    stats = trajectories.stats
    assert (stats.hits, stats.misses, stats.entries) == (1, 1, 1)


def test_edits_differ_where_the_recording_is_of_another_source(runner):
    """The comparison above can fail."""
    trajectories = Trajectories(PLENTY, runner)
    edit, other = PLANS["self"], edit_plan(5, 1, self_query=self_share(UNET, 0.6))
    with trajectories.attached(other) as traced:
        denoise([traced], runner)
    recording = there(traced.trace).recording
    trace = replace(there(traced.trace), recording=recording, replays=True)
    wrong = denoise([replace(edit, trace=trace)], runner)[0]
    assert largest(wrong.latents[1], denoise([edit], runner)[0].latents[1]) > 1e-2


@pytest.mark.parametrize("kind", ["cross", "self", "all rows"])
def test_replayed_recorded_and_unrelated_edits_share_calls(kind, runner):
    edit, unrelated, another = PLANS[kind], edit_plan(3, 4, latents_seed=8), PLANS["adaptive"]
    fresh = edit_plan(6, 2, latents_seed=9, self_query=self_share(UNET, 0.6))
    plans = [edit, unrelated, fresh, another]
    alone = [denoise([one], runner)[0] for one in plans]
    trajectories = Trajectories(PLENTY, runner)
    run(trajectories, PLANS["self"], runner)
    run(trajectories, PLANS["all rows"], runner)
    run(trajectories, PLANS["adaptive"], runner)
    assert trajectories.stats.entries == 1
    runner.rows.clear()
    with (
        trajectories.attached(edit) as one,
        trajectories.attached(fresh) as two,
        trajectories.attached(another) as three,
    ):
        outcomes = denoise([one, unrelated, two, three], runner)
    assert runner.rows == [2 + 4 + 4 + 2] * STEPS
    for outcome, wanted in zip(outcomes, alone, strict=True):
        assert_close(outcome, wanted)
    runner.rows.clear()
    assert_close(run(trajectories, fresh, runner), alone[2])
    assert runner.rows == [2] * STEPS


def test_another_knob_replays_and_another_reach_records_both(runner):
    trajectories = Trajectories(PLENTY, runner)
    run(trajectories, PLANS["self"], runner)
    other = edit_plan(0, 2, word_steps=0.1, strength=torch.tensor([1, 0.5]))
    run(trajectories, other, runner)
    assert (trajectories.stats.hits, trajectories.stats.entries) == (1, 1)
    run(trajectories, PLANS["all rows"], runner)
    assert (trajectories.stats.hits, trajectories.stats.entries) == (1, 1)
    for known in ("self", "all rows"):
        run(trajectories, PLANS[known], runner)
    assert (trajectories.stats.hits, trajectories.stats.entries) == (3, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"latents": noise(1, 4, 8, 8, seed=1).repeat(2, 1, 1, 1)},
        {"guidance_weights": torch.tensor([[-3.0, 4.0]] * 2)},
        {
            "schedule": replace(
                PLANS["cross"].schedule, output_weight=PLANS["cross"].schedule.output_weight * 0.9
            )
        },
        {"guidance_until": 0.5},
        {"unconditional_steps": noise(STEPS, TOKENS, 24)},
        {"source_latents": noise(STEPS, 4, 8, 8)},
        {"noise": noise(STEPS, 4, 8, 8)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_the_source_changes_its_key(change):
    edit = PLANS["cross"]
    assert source_key(replace(edit, **change)) != source_key(edit)


def test_what_changes_the_target_alone_keeps_the_key():
    one, other = PLANS["cross"], edit_plan(0, 3, word_steps=0.9, self_key=self_share(UNET, 0.5))
    assert source_key(one) == source_key(other) == source_key(plan(0, 4)) != source_key(edit_plan(1, 1))


def test_tracks_that_have_no_common_source_have_no_key():
    assert source_key(plan(0)) is None
    assert source_key(edit_plan(0, 1, 2, source_track=(0, 1, 1))) is None
    assert source_key(edit_plan(0, 1, source_track=(1, 1))) is None


@pytest.mark.parametrize("kind", ["cross", "self", "blend", "adaptive", "all rows", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_known_before(kind, dtype):
    with PyTorchRunner(tiny_unet().to(dtype)) as runner:
        edit, trajectories = PLANS[kind], Trajectories(PLENTY, runner)
        run(trajectories, edit, runner)
        wanted = recording_bytes(edit, reach_of(edit, LAYERS), runner.specs, dtype)
        assert trajectories.stats.bytes == wanted


def test_the_least_recently_used_makes_way(runner):
    edits = [edit_plan(0, 1, latents_seed=seed) for seed in range(3)]
    size = recording_bytes(edits[0], reach_of(edits[0], LAYERS), runner.specs, runner.dtype)
    trajectories = Trajectories(2 * size, runner)
    for i in (0, 1, 0, 2):
        run(trajectories, edits[i], runner)
        assert trajectories.stats.bytes <= 2 * size
    assert (trajectories.stats.evictions, trajectories.stats.entries) == (1, 2)
    runner.rows.clear()
    run(trajectories, edits[0], runner)
    run(trajectories, edits[1], runner)
    assert runner.rows == [2] * STEPS + [4] * STEPS


def test_what_does_not_fit_is_not_recorded(runner):
    edit = PLANS["cross"]
    size = recording_bytes(edit, reach_of(edit, LAYERS), runner.specs, runner.dtype)
    trajectories = Trajectories(size - 1, runner)
    with trajectories.attached(edit) as plain:
        assert plain is edit
    assert trajectories.stats.bytes == 0 and trajectories.stats.misses == 1


def test_a_recording_in_use_does_not_make_way(runner):
    edits = [edit_plan(0, 1, latents_seed=seed) for seed in range(2)]
    size = recording_bytes(edits[0], reach_of(edits[0], LAYERS), runner.specs, runner.dtype)
    trajectories = Trajectories(size, runner)
    run(trajectories, edits[0], runner)
    with trajectories.attached(edits[0]) as used, trajectories.attached(edits[1]) as other:
        assert there(used.trace).replays and other.trace is None
    with trajectories.attached(edits[1]) as other:
        assert not there(other.trace).replays


def test_half_a_recording_is_dropped(runner):
    edit, trajectories = PLANS["cross"], Trajectories(PLENTY, runner)

    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), trajectories.attached(edit) as traced:
        denoise([traced], runner, callback=stop)
    assert (trajectories.stats.bytes, trajectories.stats.entries) == (0, 0)
    with trajectories.attached(edit) as traced:
        assert not there(traced.trace).replays


def test_a_source_is_recorded_once_at_a_time(runner):
    edit, trajectories = PLANS["cross"], Trajectories(PLENTY, runner)
    with trajectories.attached(edit) as one, trajectories.attached(edit) as other:
        assert one.trace is not None and other is edit


def test_runners_say_whether_they_can(runner):
    assert can_replay(runner)
    assert not can_replay(PyTorchRunner(UNET, project_once=False))


def test_a_recording_is_enough_for_less():
    much = Reach(cross=True, self_rows=(0, 2), maps=True)
    assert much.covers(Reach(cross=False, self_rows=(0, 1), maps=False))
    assert not much.covers(Reach(cross=True, self_rows=(1, 1), maps=False))


def test_stochastic_sources_are_replayed_with_their_noise(runner):
    base = PLANS["cross"].schedule
    schedule = Schedule(**{**vars(base), "noise_weight": torch.full_like(base.noise_weight, 0.1)})
    edit = edit_plan(0, 1, schedule=schedule, noise=noise(STEPS, 4, 8, 8))
    trajectories = Trajectories(PLENTY, runner)
    first = run(trajectories, edit, runner)
    assert_close(run(trajectories, edit, runner), first)
    other = replace(edit, noise=noise(STEPS, 4, 8, 8, seed=3))
    run(trajectories, other, runner)
    assert trajectories.stats.entries == 2
