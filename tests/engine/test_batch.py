"""The batch: edits join, leave and move up; what FWT, DPS and local blends make of maps; nothing waits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from adapedit_engine.batch import Batch, Seat, observe, size_for, widened, word_places
from adapedit_engine.batch import _taken as edit_taken
from adapedit_engine.models.controls import EDIT_NAMES, SELF_NAMES, Controls
from adapedit_engine.plan import SelfEdit
from adapedit_engine.runners.pytorch import PyTorchRunner
from adapedit_engine.scheduler import denoise
from adapedit_engine.step import step
from tests.engine.every_plan import alike, plans
from tests.engine.tiny import (
    SIDE,
    STEPS,
    TOKENS,
    adaptive,
    blend,
    ddim,
    edit_plan,
    largest,
    noise,
    plan,
    tiny_unet,
)

PIXELS, SOURCES = 16, torch.tensor([0, 0, 1])


@pytest.fixture(scope="module")
def runner() -> Iterator[PyTorchRunner]:
    with PyTorchRunner(tiny_unet(), map_divisor=1) as opened:
        yield opened


@pytest.mark.parametrize("whole", [False, True], ids=["as launched", "as captured"])
def test_every_kind_of_plan_beside_all_others_is_as_alone(runner, whole: bool):
    """Each joins a step after the one before, and leaves when it is done; captured calls are filled up to sizes."""
    waiting, batch, ended = dict(plans()), Batch(runner, 64, whole=whole), {}
    running: dict[str, Seat] = {}
    while waiting or running:
        if waiting:
            name = next(iter(waiting))
            running[name] = batch.join(waiting.pop(name))
        for name, seat in list(running.items()):
            if seat.stops_guidance:
                running[name] = batch.stop_guidance(seat)
        step(batch)
        for name in [name for name, seat in running.items() if seat.done]:
            ended[name] = batch.leave(running.pop(name))
    assert not batch.seats and batch.used_rows == 0
    for name, one in plans().items():
        (alone,) = denoise([one], runner)
        alike(ended[name], alone)


def test_times_on_a_device_are_not_read_and_the_plan_says_in_which_layers_they_may_be(runner):
    """What FWT found in a first pass lies there; "meta" stands in for it."""
    layers = torch.zeros(2, len(runner.specs.self_layers), dtype=torch.bool)
    layers[1, 2] = True
    times = torch.empty(*layers.shape, 2, dtype=torch.int64, device="meta")
    for part, wanted in (
        (SelfEdit(query=times, layers=layers), layers[1].tolist()),
        (SelfEdit(query=times), [True] * layers.shape[1]),
    ):
        taken = edit_taken(edit_plan(1, 2, self_attention=part))
        assert taken.keys() == {"self_query_row"}
        steps = taken["self_query_row"].tolist()
        assert [start < stop for start, stop in steps] == wanted
        assert steps[2] == [0, STEPS]


def test_halves_run_alone_and_a_call_that_fails_changes_nothing(runner, monkeypatch):
    every = list(plans().values())[:6]
    batch = Batch(runner, 64)
    seats = [batch.join(one) for one in every]
    before = {name: value.clone() for name, value in batch.tracks.items()}
    infer = PyTorchRunner.infer
    monkeypatch.setattr(PyTorchRunner, "infer", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        step(batch)
    assert all(torch.equal(batch.tracks[name], value) for name, value in before.items() if name != "noise")
    monkeypatch.setattr(PyTorchRunner, "infer", infer)
    step(batch, seats[:2])
    step(batch, seats[2:])
    for one, seat in zip(every, seats, strict=True):
        other = Batch(runner, 64)
        alone = other.join(one)
        step(other)
        assert largest(batch.latents(seat), other.latents(alone)) < 1e-4


def test_captured_halves_have_room_for_what_they_are_filled_up_with(runner):
    """Five edits behind the first are filled up to sixteen rows: more than all have."""
    batch = Batch(runner, 12, whole=True)
    seats = [batch.join(plan(seed)) for seed in range(6)]
    step(batch, seats[:1])
    step(batch, seats[1:])
    for seat in seats:
        other = Batch(runner, 2)
        alone = other.join(seat.plan)
        step(other)
        assert largest(batch.latents(seat), other.latents(alone)) < 1e-4


def test_room_doubles_and_nothing_moves_where_there_is_some(runner):
    """A captured step reads buffers where they were: `version` says that they have moved."""
    batch, found = Batch(runner, 64), []
    for seed in range(6):
        before = batch.version
        batch.join(plan(seed))
        found.append((len(batch.rows["track"]), batch.version > before))
    assert found == [(2, True), (4, True), (8, True), (8, False), (16, True), (16, False)]


def test_the_plan_is_not_changed_by_running_it(runner):
    for one in plans().values():
        before = one.digest()
        denoise([one], runner)
        assert one.digest() == before


def test_nothing_waits_for_the_device_inside_a_step(runner, monkeypatch):
    """No value of a tensor on the device is read: on a GPU each of these would wait."""
    batch = Batch(runner, 128)
    for one in plans().values():
        batch.join(replace(one, guidance_until=1.0))
    step(batch)
    call = batch.call(batch.seats)
    batch.feed(batch.seats)

    def read(*_: object, **__: object) -> None:
        raise AssertionError("a tensor's value was read")

    from adapedit_engine.step import run

    for name in (
        "item",
        "tolist",
        "numpy",
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
        "cpu",
        "nonzero",
    ):
        monkeypatch.setattr(torch.Tensor, name, read)
    monkeypatch.setattr(type(call), "_grow", lambda self, part: 2)  # of plans on the host
    with torch.inference_mode():
        run(call)
    monkeypatch.undo()
    assert int(batch.tracks["step"][0]) == 2


@pytest.mark.parametrize(("weight", "first"), [(1e38, 1), (3e38, 0)])
def test_latents_that_are_no_numbers_say_at_which_step_and_leave_others_alone(
    runner, weight: float, first: int
):
    spoilt = edit_plan(1, 2, guidance_weights=torch.tensor([[-weight, weight]]).repeat(2, 1), record=True)
    broken, (alone,) = denoise([spoilt, plan(3)], runner), denoise([plan(3)], runner)
    good = broken[0].trajectory.isfinite().flatten(2).all(2)  # [T, K]
    assert not good.all(0).any() and not good[-1].any()
    assert broken[0].broken_step.tolist() == good.long().argmin(0).tolist() == [first, first]
    assert broken[1].broken_step is not None and broken[1].broken_step.tolist() == [-1]
    assert largest(broken[1].latents, alone.latents) < 1e-4


def test_what_an_edit_has_seen_is_the_average_of_its_conditional_rows(runner, monkeypatch):
    infer, outputs = PyTorchRunner.infer, []

    def watched(self, *args, **options):
        outputs.append(infer(self, *args, **options))
        return outputs[-1]

    monkeypatch.setattr(PyTorchRunner, "infer", watched)
    (outcome,) = denoise([edit_plan(1, 2, collect=True)], runner)
    maps, features = (
        torch.stack([one[name].float() for one in outputs])
        for name in ("cross_attention_maps", "visual_features")
    )
    assert len(outputs) == STEPS
    assert largest(outcome.maps, maps.mean(0)) < 1e-6
    assert largest(outcome.features, features.mean(0)) < 1e-5
    assert torch.equal(outcome.last_features, features[-1])


# -- what rows take, step by step


def test_a_word_is_held_from_its_first_step_to_its_last(runner):
    """The weight of the target's own map at a token, written out."""
    first = torch.tensor([0.0, 0.2, 0.4, 0.0, 0.6, 1.0]).repeat(2, 1)
    last = torch.tensor([0.6, 0.2, 0.8, 1.0, 1.0, 1.0]).repeat(2, 1)
    strength, own = torch.tensor([1.0, 0.75]), torch.tensor([0.0, 0.5, 0.0, 1.0, 0.25, 0.0])
    cross = {"word_starts": first, "strength": strength, "own_weight": own.repeat(2, 1)}
    batch = Batch(runner, 4)
    batch.join(edit_plan(1, 2, word_steps=last, cross=cross))
    for index in range(STEPS):
        call = batch.call(batch.seats)
        held = [
            float(first[1, n]) * STEPS - 1e-4 <= index < float(last[1, n]) * STEPS - 1e-4
            for n in range(TOKENS)
        ]
        wanted = [0.0 if held[n] else 0.75 * (1 - float(own[n])) for n in range(TOKENS)]
        got = call.inputs()
        assert got["edited_row"].tolist() == [3] and got["source_row"].tolist() == [1]
        assert got["spatial_weight"].tolist() == [pytest.approx(wanted)]
        step(batch)


@pytest.mark.parametrize("whole", [False, True], ids=["as launched", "as captured"])
def test_self_attention_takes_from_the_source_in_its_layers_at_its_steps(runner, whole: bool):
    """And layers in which no row takes are not asked for: those of the step, captured those of any step."""
    count = len(runner.specs.self_layers)
    times = torch.zeros(2, count, 2, dtype=torch.int64)
    times[1, 1], times[1, 2], times[1, 4] = torch.tensor([[1, 3], [0, 2], [3, 1]])
    batch = Batch(runner, 8, whole=whole)
    batch.join(plan(9))
    batch.join(edit_plan(1, 2, self_attention=SelfEdit(query=times)))
    for index in range(STEPS):
        call = batch.call(batch.seats)
        taking = [layer for layer, (start, stop) in enumerate(times[1].tolist()) if start <= index < stop]
        assert call.self_layers["self_query_row"] == ((1, 2) if whole else tuple(taking))
        assert call.self_layers["self_key_row"] == call.self_layers["self_value_row"] == ()
        inputs = call.inputs()
        assert ("self_query_row" in inputs) == bool(call.self_layers["self_query_row"])
        for layer, rows in enumerate(inputs["self_query_row"].tolist() if taking else ()):
            assert rows == [0, 1, 2, 3, 4, 3 if layer in taking else 5, *range(6, call.size)]
        step(batch)


def test_a_graph_that_wants_all_controls_gets_those_of_nothing(runner, monkeypatch):
    """Bundles' graphs are fixed: where nobody edits, the first row takes everything from itself."""
    (plain,) = denoise([plan(5)], runner)
    capabilities = replace(runner.capabilities, all_controls=True)
    monkeypatch.setattr(PyTorchRunner, "capabilities", capabilities)
    batch = Batch(runner, 2)
    batch.join(plan(5))
    inputs = batch.call(batch.seats).inputs()
    none = Controls.identity(batch=1, tokens=TOKENS, pixels=SIDE**2, layers=len(runner.specs.self_layers))
    for name in EDIT_NAMES:
        assert torch.equal(inputs[name], none.as_dict()[name]), name
    for name in SELF_NAMES:
        assert inputs[name].tolist() == [[0, 1]] * len(runner.specs.self_layers)
    (got,) = denoise([plan(5)], runner)
    assert largest(got.latents, plain.latents) < 1e-4


# -- FWT and DPS


def seen() -> tuple[torch.Tensor, torch.Tensor]:
    return noise(3, PIXELS, TOKENS, seed=1).softmax(-1), noise(3, PIXELS, 5, seed=2)


def found(**changes):
    keys = torch.zeros(3, TOKENS, dtype=torch.bool)
    for track in range(3):
        keys[track, 1 + track] = True
    words = torch.arange(TOKENS).expand(3, -1)
    knobs = vars(
        adaptive(3, **{"key_tokens": keys, "word_of_token": words, "lambda_spatial": 1.5, **changes})
    )
    return observe(*seen(), knobs, SOURCES, (2, 8))


def test_a_joined_map_is_the_larger_of_a_tracks_own_and_its_sources():
    (words, own), (same, joined) = found(), found(joined=True)
    for track, source in enumerate(SOURCES.tolist()):
        assert torch.equal(joined[track], torch.maximum(own[track], own[source]))
    assert not torch.equal(joined[1], own[1])
    assert torch.equal(same.word_steps, words.word_steps)


def test_a_source_without_words_of_the_edit_adds_nothing():
    keys = torch.zeros(3, TOKENS, dtype=torch.bool)
    keys[1, 2] = True
    (_, own), (_, joined) = found(key_tokens=keys), found(key_tokens=keys, joined=True)
    assert torch.equal(joined[1], own[1]) and not own[0].any()


def test_each_map_is_widened_by_its_own_cells():
    (_, own), (_, wide) = found(), found(grow=torch.tensor([0, 1, 2]))
    for track, cells in enumerate((0, 1, 2)):
        grid = own[track].view(2, 8)
        for x in range(8):
            around = grid if cells else grid[:, x : x + 1]
            expected = around[:, max(0, x - cells) : x + cells + 1].max() if cells else grid[:, x]
            got = wide[track].view(2, 8)[:, x]
            assert torch.equal(got, expected.expand(2) if cells else expected)


def test_s_is_cut_off_at_one():
    _, spatial = found(lambda_spatial=4.0)
    assert spatial.max() == 1 and spatial.min() >= 0


@pytest.mark.parametrize("centre", [True, False])
def test_the_single_pass_recomputes_from_what_it_has_seen(runner, centre: bool):
    """By hand: before every step tau and S from the averages so far, as a plan of their own."""
    from adapedit_engine.plan import held_steps

    layers = torch.ones(2, len(runner.specs.self_layers), dtype=torch.bool)
    edited = edit_plan(
        1,
        2,
        adaptive=adaptive(self_layers=layers, centre=centre),
        cross={"strength": torch.tensor([1.0, 0.8])},
    )
    (single,) = denoise([edited], runner)
    knobs, source = vars(adaptive(self_layers=layers, centre=centre)), torch.tensor([0, 0])
    cross: Any
    cross, selves, latents = edited.cross_attention, None, edited.latents
    maps = features = torch.zeros(())
    for index in range(STEPS):
        here = replace(edited, adaptive=None, collect=True, cross_attention=cross, self_attention=selves)
        batch = Batch(runner, 8)
        seat = batch.join(replace(here, latents=latents))
        with torch.inference_mode():
            batch.tracks["step"].fill_(index)
        seat.step = index
        step(batch)
        latents = batch.latents(seat)
        maps, features = maps + batch.tracks["map_sum"][:2], features + batch.tracks["feature_sum"][:2]
        words, spatial = observe(maps / (index + 1), features / (index + 1), knobs, source, (SIDE, SIDE))
        stop = held_steps(words.default_steps, STEPS).long()
        interval = torch.stack([torch.zeros_like(stop), stop], 1).unsqueeze(1).expand(-1, layers.shape[1], -1)
        cross = replace(cross, word_steps=words.word_steps, spatial_map=spatial)
        selves = SelfEdit(query=interval, key=interval)
    assert largest(single.latents, latents) < 1e-4
    assert largest(single.word_steps, cross.word_steps) < 1e-5
    assert largest(single.spatial_map, cross.spatial_map) < 1e-4
    steps = single.word_steps[1]
    assert steps[2] == 0 and steps[3] == steps[4] > 0


def test_parts_of_the_single_pass_may_be_off(runner):
    spatial = noise(2, SIDE**2).sigmoid()
    layers = torch.zeros(2, len(runner.specs.self_layers), dtype=torch.bool)
    never = torch.zeros(2, TOKENS, dtype=torch.bool)
    off = adaptive(temporal=never, spatial=False, self_layers=layers)
    neither = edit_plan(1, 2, adaptive=off, cross={"spatial_map": spatial})
    (outcome,), (plain,) = denoise([neither], runner), denoise([replace(neither, adaptive=None)], runner)
    assert torch.equal(outcome.latents, plain.latents)
    assert torch.equal(outcome.word_steps, neither.cross_attention.word_steps)
    assert torch.equal(outcome.spatial_map, spatial)


def test_until_something_is_seen_the_plans_own_times_hold(runner):
    """Its self-attention at the first step is that of the plan without the single pass."""
    layers = torch.ones(2, len(runner.specs.self_layers), dtype=torch.bool)
    first = torch.tensor([0, 1]).expand(*layers.shape, 2)
    told = edit_plan(1, 2, self_attention=SelfEdit(query=first, key=first), record=True)
    (single,) = denoise([replace(told, adaptive=adaptive(self_layers=layers))], runner)
    (plain,), (without,) = denoise([told], runner), denoise([replace(told, self_attention=None)], runner)
    assert largest(single.trajectory[0], plain.trajectory[0]) < 1e-5
    assert largest(single.trajectory[0], without.trajectory[0]) > 1e-3


# -- local blends


def slow_mask(maps: torch.Tensor, weights: torch.Tensor, threshold: float) -> torch.Tensor:
    """Pixel by pixel: maximum over 3 x 3 of the chosen words' maps, share of the peak."""
    heat = (maps * weights).sum(-1).reshape(SIDE, SIDE)
    rows = [
        [heat[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].max() for x in range(SIDE)] for y in range(SIDE)
    ]
    spread = torch.stack([torch.stack(row) for row in rows])
    return spread / spread.max() > threshold


def test_local_blend_keeps_the_source_outside_the_words_of_both_prompts(runner):
    own, of_source = torch.zeros(2, TOKENS), torch.zeros(2, TOKENS)
    own[1, 2] = of_source[1, 1] = 1
    part = blend(threshold=0.8, start=0.4, token_weights=own, source_weights=of_source)
    edited = edit_plan(1, 2, local_blend=part, collect=True)
    free, blended = Batch(runner, 8), Batch(runner, 8)
    first, second = free.join(replace(edited, local_blend=None)), blended.join(edited)
    for index in range(STEPS):
        with torch.inference_mode():
            free.tracks["latents"].copy_(blended.tracks["latents"])
        step(free)
        step(blended)
        got, unblended = blended.latents(second), free.latents(first)
        assert torch.equal(got[0], unblended[0])
        if index < 2:
            assert torch.equal(got, unblended)
            continue
        maps = blended.tracks["map_sum"]
        mask = slow_mask(maps[0], of_source[1], 0.8) | slow_mask(maps[1], own[1], 0.8)
        assert 0 < mask.float().mean() < 1
        assert largest(got[1], torch.where(mask, unblended[1], unblended[0])) < 1e-5


def test_a_mask_keeps_the_source_from_the_first_step_on_and_frees_the_rest(runner):
    mask = torch.ones(2, SIDE, SIDE)
    mask[1, :, : SIDE // 2], mask[1, 0] = 0, 0.25
    alone = edit_plan(1, 2, local_blend=blend(start=2.0, mask=mask))
    free, kept = Batch(runner, 8), Batch(runner, 8)
    first, second = free.join(replace(alone, local_blend=None)), kept.join(alone)
    for _ in range(STEPS):
        with torch.inference_mode():
            free.tracks["latents"].copy_(kept.tracks["latents"])
        step(free)
        step(kept)
        got, unkept = kept.latents(second), free.latents(first)
        assert torch.equal(got[0], unkept[0])
        assert largest(got[1], unkept[0] + mask[1] * (unkept[1] - unkept[0])) < 1e-5


def test_s_is_cut_by_its_limit(runner):
    half = (torch.arange(SIDE**2) % 2).float().expand(2, -1)
    layers = torch.zeros(2, len(runner.specs.self_layers), dtype=torch.bool)
    free, cut = (
        denoise([edit_plan(1, 2, adaptive=adaptive(self_layers=layers, **more))], runner)[0].spatial_map[1]
        for more in ({}, {"limit": half})
    )
    assert not cut[half[1] == 0].any() and cut.max() > 0
    assert free[half[1] == 0].max() > 0


def test_of_several_tokens_each_has_its_places():
    maps = torch.tensor([[[0.9, 0.01], [0.0, 0.0], [0.0, 0.04]]])  # [K, P, N]
    places = word_places(maps, torch.ones(1, 2))
    assert places.tolist() == [[1.0, 0.0, 1.0]]
    assert word_places(maps, torch.zeros(1, 2)).tolist() == [[0.0, 0.0, 0.0]]


def test_places_of_a_pass_before_are_taken_instead_of_those_so_far(runner):
    everywhere, nowhere = torch.ones(2, SIDE**2), torch.zeros(2, SIDE**2)
    known = torch.tensor([False, True])
    (free,) = denoise([edit_plan(1, 2)], runner)
    for places, expected in ((everywhere, free.latents[1]), (nowhere, free.latents[0])):
        part = blend(threshold=0.5, start=0.0, grow=0, known=known, places=places)
        (outcome,) = denoise([edit_plan(1, 2, local_blend=part)], runner)
        assert largest(outcome.latents[1], expected) < 1e-5


def test_widening_is_the_maximum_around():
    places = noise(2, 12, seed=3)
    wide = widened(places, (3, 4), torch.tensor([1, 4]))
    grid = places.view(2, 3, 4)
    assert torch.equal(wide[1], grid[1].max().expand(12))
    assert wide.view(2, 3, 4)[0, 0, 0] == grid[0, :2, :2].max()


# -- sizes


@pytest.mark.parametrize(
    ("rows", "sizes", "wanted"),
    [(3, None, 3), (2, (2, 4), 2), (3, (2, 4), 4), (4, (2, 4), 4), (5, (2, 4), 5)],
)
def test_rows_are_filled_up_to_the_next_size(rows, sizes, wanted):
    assert size_for(rows, sizes) == wanted


@pytest.mark.parametrize(
    ("max_rows", "sizes"), [(1, (1,)), (2, (1, 2)), (5, (1, 2, 4, 8)), (8, (1, 2, 4, 8))]
)
def test_captured_calls_have_a_power_of_two_rows_up_to_all(runner, max_rows: int, sizes):
    assert Batch(runner, max_rows, whole=True).sizes == sizes and Batch(runner, max_rows).sizes is None


def test_conditioning_channels_for_models_with_more_inputs_than_outputs():
    """InstructPix2Pix: eight input channels, three guidance rows, of which one does not see the picture."""
    unet = tiny_unet(in_channels=8)
    extra = torch.stack([torch.zeros(4, SIDE, SIDE), noise(4, SIDE, SIDE), noise(4, SIDE, SIDE)])[None]
    text, weights = noise(1, 3, TOKENS, 24, seed=1), torch.tensor([[-0.5, -1.0, 2.5]])
    one = plan(1, encoder_hidden_states=text, guidance_weights=weights, conditioning={"channels": extra})
    with PyTorchRunner(unet, map_divisor=1) as runner:
        (outcome,) = denoise([one], runner)
    latents, schedule = one.latents, ddim()
    for i in range(STEPS):
        sample = torch.cat([latents.repeat(3, 1, 1, 1), extra[0]], dim=1)
        with torch.no_grad():
            rows = unet(sample, schedule.timesteps[i], text[0]).sample
        guided = (weights[0].reshape(3, 1, 1, 1) * rows).sum(0, keepdim=True)
        latents = float(schedule.sample_weight[i]) * latents + float(schedule.output_weight[i]) * guided
    assert largest(outcome.latents, latents) < 1e-4
