"""Probed schedules are found again, and only where nothing about the scheduler has changed."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler

from adapedit_engine import Schedule, ScheduleError
from adapedit_engine.schedules import ScheduleCache, schedule_bytes, scheduler_key


def ddim(**config) -> DDIMScheduler:
    return DDIMScheduler(clip_sample=False, **config)


def equal(one: Schedule, other: Schedule) -> bool:
    return all(
        torch.equal(value, other_value) if isinstance(value, torch.Tensor) else value == other_value
        for value, other_value in zip(vars(one).values(), vars(other).values(), strict=True)
    )


@pytest.mark.parametrize("make", [ddim, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler])
def test_a_schedule_is_probed_once(make):
    cache = ScheduleCache()
    first = cache.get(make(), 5)
    assert equal(first, Schedule.from_scheduler(make(), 5))
    # Another object of the same configuration is the same scheduler.
    assert cache.get(make(), 5) is first
    assert (cache.stats.hits, cache.stats.misses, cache.stats.entries) == (1, 1, 1)


@pytest.mark.parametrize(
    "scheduler, steps, options",
    [
        (ddim(), 6, {}),
        (ddim(beta_end=0.015), 5, {}),
        (ddim(timestep_spacing="trailing"), 5, {}),
        (ddim(), 5, {"eta": 0.5}),
        (EulerDiscreteScheduler(), 5, {}),
    ],
)
def test_what_changes_a_schedule_is_not_mistaken(scheduler, steps, options):
    cache = ScheduleCache()
    cache.get(ddim(), 5)
    assert equal(cache.get(scheduler, steps, **options), Schedule.from_scheduler(scheduler, steps, **options))
    assert (cache.stats.hits, cache.stats.entries) == (0, 2)


def test_tables_changed_by_hand_and_other_classes_of_one_name_are_other_schedulers():
    changed = ddim()
    changed.alphas_cumprod = changed.alphas_cumprod**2
    assert scheduler_key(changed, 5) != scheduler_key(ddim(), 5)
    twin = type("DDIMScheduler", (DDIMScheduler,), {})
    assert scheduler_key(twin(clip_sample=False), 5) != scheduler_key(ddim(), 5)


def test_what_can_not_be_compared_is_probed_each_time():
    scheduler, cache = ddim(), ScheduleCache()
    scheduler.helper = object()
    assert scheduler_key(scheduler, 5) is None
    assert equal(cache.get(scheduler, 5), cache.get(ddim(), 5))
    assert cache.stats.entries == 1


def test_the_cache_is_bounded_and_errors_are_not_kept():
    size = schedule_bytes(Schedule.from_scheduler(ddim(), 5))
    cache = ScheduleCache(max_bytes=2 * size)
    for spacing in ("leading", "trailing", "linspace"):
        cache.get(ddim(timestep_spacing=spacing), 5)
    assert (cache.stats.entries, cache.stats.evictions, cache.stats.bytes) == (2, 1, 2 * size)
    for _ in range(2):
        with pytest.raises(ScheduleError):
            cache.get(ddim(), 0)
