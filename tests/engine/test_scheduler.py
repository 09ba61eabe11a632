"""Scheduling: order, limits, deadlines, cancellation, errors that stay where they arose, memory that runs out."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from types import SimpleNamespace

import pytest
import torch

from adapedit_engine.cuda_graph import RUN_AHEAD, RunAhead
from adapedit_engine.memory import GOOD_CALLS, plan_bytes
from adapedit_engine.models.controls import EDIT_NAMES
from adapedit_engine.plan import EditPlan, PlanError
from adapedit_engine.runners.base import Capabilities
from adapedit_engine.runners.pytorch import PyTorchRunner
from adapedit_engine.scheduler import (
    AdmissionError,
    DeadlineError,
    Enough,
    Passes,
    Scheduler,
    denoise,
    without_traceback,
)
from adapedit_kernels.errors import AdapEditError
from tests.engine.every_plan import alike, plans
from tests.engine.tiny import SIDE, STEPS, ddim, edit_plan, noise, plan, tiny_unet


class Watching(PyTorchRunner):
    """Keeps the rows of each call, and fails where it is told to."""

    def __init__(self, **options) -> None:
        super().__init__(tiny_unet(), map_divisor=1, **options)
        self.rows: list[int] = []
        self.fails: Callable[[int], Exception | None] = lambda rows: None

    def infer(self, inputs, outputs=None, *, self_layers=None):
        rows = len(inputs["timestep"])
        error = self.fails(rows)
        if error is not None:
            raise error
        self.rows.append(rows)
        return super().infer(inputs, outputs, self_layers=self_layers)


@pytest.fixture
def runner() -> Iterator[Watching]:
    opened = Watching()
    with opened:
        yield opened


def edit(rows: int = 4, steps: int = 2, seed: int = 0, side: int = SIDE) -> EditPlan:
    """A plan of so many rows and steps."""
    tracks = rows // 2
    start = noise(1, 4, side, side, seed=seed).repeat(tracks, 1, 1, 1)
    return plan(*range(tracks), schedule=ddim(steps), latents=start)


def job(*passes: EditPlan | Sequence[EditPlan], result: object = "done") -> Passes:
    """Passes one after the other; several plans in a pass are side by side."""
    for each in passes:
        wanted = [each] if isinstance(each, EditPlan) else list(each)
        outcomes = yield wanted
        assert [outcome.steps for outcome in outcomes] == [one.steps for one in wanted]
    return result


def one_pass(wanted: EditPlan) -> Passes:
    (outcome,) = yield [wanted]
    return outcome


def test_edits_join_and_leave_between_steps(runner):
    scheduler = Scheduler(runner, max_rows=8)
    first = scheduler.submit(job(edit(steps=3)))
    scheduler.step()
    second = scheduler.submit(job(edit(steps=1)))
    scheduler.drain()
    assert runner.rows == [4, 8, 4]
    assert first.future.result() == second.future.result() == "done"
    assert scheduler.idle and scheduler.stats.finished == 2 and scheduler.stats.max_rows == 8


class Device:
    """A made-up CUDA device, on which a step takes a second; the host launches one in no time.

    said: what the host did, in order. begins: when each step begins on the device. at: what others do meanwhile, and
    when; they get to it while the host waits.
    """

    def __init__(self) -> None:
        self.now, self.ends = 0.0, list[float]()
        self.said, self.begins = list[str](), list[float]()
        self.at: dict[float, Callable[[], object]] = {}

    def launch(self) -> None:
        self.said.append(f"launch {len(self.ends)}")
        self.begins.append(max([self.now, *self.ends[-1:]]))
        self.ends.append(self.begins[-1] + 1)

    def wait_for(self, step: int) -> None:
        self.said.append(f"wait {step}")
        self.now = max(self.now, self.ends[step])
        for when in [when for when in self.at if when <= self.now]:
            self.at.pop(when)()

    def Event(self, blocking: bool) -> SimpleNamespace:
        step = len(self.ends) - 1
        return SimpleNamespace(record=lambda stream: None, synchronize=lambda: self.wait_for(step))

    def current_stream(self, device: torch.device) -> None: ...


@pytest.fixture
def device(runner: Watching) -> Device:
    """Where the runner's calls are launched."""
    made = Device()
    runner.fails = lambda rows: made.launch()
    return made


def ahead(runner: Watching, device: Device) -> Scheduler:
    scheduler = Scheduler(runner)
    scheduler._ahead = RunAhead(torch.device("cuda", 1), cuda=device)
    return scheduler


def test_a_step_is_launched_when_the_one_before_the_last_has_ended(runner, device):
    scheduler = ahead(runner, device)
    scheduler.submit(job(edit(steps=5)))
    scheduler.drain()
    assert RUN_AHEAD == 2
    assert device.said == "launch 0|launch 1|wait 0|launch 2|wait 1|launch 3|wait 2|launch 4|wait 3".split(
        "|"
    )


def test_an_edit_that_arrives_joins_within_two_steps(runner, device):
    scheduler = ahead(runner, device)
    scheduler.submit(job(edit(steps=12)))
    arrivals = (1.0, 3.2, 5.99)
    device.at = {when: lambda: scheduler.submit(job(edit(steps=1))) for when in arrivals}
    scheduler.drain()
    joined = [begin for begin, rows in zip(device.begins, runner.rows, strict=True) if rows > 4]
    assert len(joined) == len(arrivals)
    assert all(0 <= begin - when <= 2 for begin, when in zip(joined, arrivals, strict=True))


def test_an_edit_that_is_cancelled_takes_part_in_two_more_steps_at_most(runner, device):
    scheduler = ahead(runner, device)
    ticket = scheduler.submit(job(edit(steps=40)))
    scheduler.submit(job(edit(steps=8)))
    device.at = {4.5: ticket.future.cancel}
    scheduler.drain()
    with_it = [begin for begin, rows in zip(device.begins, runner.rows, strict=True) if rows == 8]
    assert max(with_it) <= 4.5 + 2 and len(runner.rows) == 8


def test_static_batching_waits_for_the_batch(runner):
    scheduler = Scheduler(runner, max_rows=8, join_running=False)
    scheduler.submit(job(edit(steps=3)))
    scheduler.step()
    scheduler.submit(job(edit(steps=1)))
    scheduler.drain()
    assert runner.rows == [4, 4, 4, 4]


def test_plans_of_one_job_run_side_by_side_and_come_back_in_order(runner):
    scheduler = Scheduler(runner)
    ticket = scheduler.submit(job([edit(2, 3), edit(4, 1)], edit(4, 2)))
    scheduler.drain()
    assert runner.rows == [6, 2, 2, 4, 4]
    assert ticket.future.result() == "done" and ticket.steps_done == 6


def test_a_job_that_pauses_holds_up_nobody_and_goes_on_at_the_next_step(runner):
    def pausing() -> Passes:
        for _ in range(3):
            assert (yield []) == []
        yield [edit(2, 1)]
        return "rested"

    scheduler = Scheduler(runner)
    scheduler.submit(job(edit(4, 5)))
    ticket = scheduler.submit(pausing())
    scheduler.drain()
    assert runner.rows == [4, 4, 4, 6, 4]
    assert ticket.future.result() == "rested" and ticket.steps_done == 4


def test_rows_never_exceed_the_limit_and_nobody_starves(runner):
    scheduler = Scheduler(runner, max_rows=6)
    tickets = [scheduler.submit(job(edit(rows, 2))) for rows in (4, 6, 2, 4, 2)]
    ended = [ticket.number for ticket in scheduler.drain()]
    assert max(runner.rows) <= 6 and all(ticket.future.done() for ticket in tickets)
    # What waits for room lets nobody pass.
    assert ended[:2] == [0, 1]


def test_plans_of_different_sizes_do_not_share_calls(runner):
    scheduler = Scheduler(runner)
    for side in (SIDE, SIDE, 2 * SIDE):
        scheduler.submit(job(edit(2, 1, side=side)))
    scheduler.drain()
    assert sorted(runner.rows) == [2, 4]


def test_earlier_deadlines_go_first_and_late_jobs_fail_alone(runner):
    now = [0.0]
    scheduler = Scheduler(runner, max_rows=4, clock=lambda: now[0])
    blocker = scheduler.submit(job(edit(4, 2)))
    scheduler.step()
    patient, urgent = scheduler.submit(job(edit(4, 1))), scheduler.submit(job(edit(4, 1)), deadline=5.0)
    late = scheduler.submit(job(edit(4, 1)), deadline=0.5)
    now[0] = 1.0
    ended = scheduler.drain()
    assert [t.number for t in ended if t is not late] == [blocker.number, urgent.number, patient.number]
    with pytest.raises(DeadlineError, match="the deadline passed 0.5 s before there was room"):
        late.future.result()


def test_a_job_that_could_never_run_is_refused_and_says_how_to_mend_it(runner):
    scheduler = Scheduler(runner, max_rows=4, budget_bytes=1000)
    large, dear = scheduler.submit(job(edit(6))), scheduler.submit(job(edit(4)))
    scheduler.drain()
    with pytest.raises(AdmissionError, match="the edit takes 6 rows, max_rows is 4: raise it"):
        large.future.result()
    with pytest.raises(
        AdmissionError, match="MiB alone, the budget is 0.0 MiB: raise it, or ask for a smaller"
    ):
        dear.future.result()


def test_memory_is_never_more_than_the_budget(runner):
    budget = 2 * plan_bytes(edit(), runner) + 900
    scheduler = Scheduler(runner, budget_bytes=budget, call_bytes=lambda rows, size: 100 * rows)
    for _ in range(5):
        scheduler.submit(job(edit()))
    scheduler.drain()
    assert max(runner.rows) == 8 and scheduler.stats.max_bytes <= budget


def test_a_picture_whose_calls_are_larger_than_the_budget_is_refused(runner):
    def call_bytes(rows: int, size: tuple[int, int]) -> int:
        return 10_000 * rows * size[0] * size[1]

    large = edit(2, side=4 * SIDE)
    # Its buffers fit, and beside them the call of the model's own size would.
    budget = plan_bytes(large, runner) + call_bytes(2, (SIDE, SIDE))
    scheduler = Scheduler(runner, budget_bytes=budget, call_bytes=call_bytes)
    fits, too_large = scheduler.submit(job(edit(2))), scheduler.submit(job(large))
    scheduler.drain()
    assert fits.future.result() == "done"
    with pytest.raises(AdmissionError, match="ask for a smaller picture"):
        too_large.future.result()


def test_cancelling_frees_the_rows_before_the_next_call(runner):
    scheduler = Scheduler(runner, max_rows=8)
    closed: list[str] = []

    def closing() -> Passes:
        try:
            yield [edit(4, 50)]
        finally:
            closed.append("closed")

    running, other = scheduler.submit(closing()), scheduler.submit(job(edit(4, 3)))
    waiting = scheduler.submit(job(edit(8, 1)))
    scheduler.step()
    assert running.future.cancel() and waiting.future.cancel()
    scheduler.drain()
    assert runner.rows == [8, 4, 4] and closed == ["closed"]
    assert other.future.result() == "done" and scheduler.stats.cancelled == 2
    with pytest.raises(CancelledError):
        running.future.result()


def test_an_error_is_the_guilty_edits_own(runner, monkeypatch):
    """Wherever it sits: calls are halved until it is alone, and tried once more."""
    scheduler = Scheduler(runner)
    tickets = [scheduler.submit(one_pass(edit(2, 2, seed=seed))) for seed in range(5)]
    bad = edit(2, 2, seed=3).latents[0, 0, 0, 0]

    def infer(self, inputs, outputs=None, *, self_layers=None):
        if bool((inputs["sample"][:, 0, 0, 0] == bad).any()):
            raise RuntimeError("this one")
        return PyTorchRunner.infer(self, inputs, outputs, self_layers=self_layers)

    monkeypatch.setattr(Watching, "infer", infer)
    scheduler.drain()
    for seed, ticket in enumerate(tickets):
        if seed == 3:
            with pytest.raises(RuntimeError, match="this one"):
                ticket.future.result()
        else:
            (alone,) = denoise([edit(2, 2, seed=seed)], runner)
            alike(ticket.future.result(), alone)
    assert scheduler.stats.failed == 1


def test_an_error_that_passes_costs_nobody_the_edit(runner):
    failures = [RuntimeError("once")]
    runner.fails = lambda rows: failures.pop() if failures else None
    (outcome,) = denoise([edit()], runner)
    assert outcome.steps == 2


def test_calls_get_smaller_when_memory_runs_out_and_larger_again(runner):
    room, tried = [8], []

    def fails(rows: int) -> Exception | None:
        tried.append(rows)
        return RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB") if rows > room[0] else None

    runner.fails = fails
    scheduler = Scheduler(runner)
    for _ in range(8):
        scheduler.submit(job(edit(4, 1 + GOOD_CALLS // 2)))
    scheduler.step()
    assert tried == [32, 16, 8, 8, 16, 8, 8]
    room[0] = 32  # a neighbour is gone
    scheduler.drain()
    assert max(runner.rows) > 8 and scheduler.stats.retried == 3


def test_what_a_failed_call_had_made_is_gone_before_the_next_try(runner):
    made: list[weakref.ref] = []
    alive: list[int] = []

    def fails(rows: int) -> Exception:
        alive.append(sum(ref() is not None for ref in made))
        activation = torch.empty(4)
        made.append(weakref.ref(activation))
        try:
            raise MemoryError("of the library")
        except MemoryError as error:
            try:
                raise RuntimeError("CUDA out of memory") from error
            except RuntimeError as raised:
                return raised

    runner.fails = fails
    scheduler = Scheduler(runner)
    tickets = [scheduler.submit(job(edit())) for _ in range(2)]
    scheduler.drain()
    assert alive == [0] * 5 and not any(ref() is not None for ref in made)
    for ticket in tickets:
        with pytest.raises(RuntimeError, match="CUDA out of memory"):
            ticket.future.result()


def test_an_error_without_its_frames_says_where_it_arose():
    def failing(error: Exception) -> Exception:
        try:
            raise error
        except Exception as caught:
            return without_traceback(caught)

    unforeseen, own = failing(RuntimeError("why")), failing(AdapEditError("mend it so"))
    assert unforeseen.__traceback__ is None and own.__traceback__ is None
    if hasattr(unforeseen, "__notes__"):  # Python 3.11 on
        assert "in failing" in unforeseen.__notes__[0]
    assert not hasattr(own, "__notes__")


def test_what_a_job_raises_is_its_own(runner):
    def raising() -> Passes:
        yield [edit(2, 1)]
        raise KeyError("mine")

    scheduler = Scheduler(runner)
    bad, good = scheduler.submit(raising()), scheduler.submit(job(edit(2, 3)))
    scheduler.drain()
    assert good.future.result() == "done"
    with pytest.raises(KeyError, match="mine"):
        bad.future.result()


def test_who_watches_is_told_every_step_and_may_stop_his_own_edit(runner):
    told: list[tuple[int, tuple[int, ...]]] = []

    def tell(plan: EditPlan, step_index: int, latents: torch.Tensor) -> None:
        told.append((step_index, tuple(latents.shape)))

    def stop(plan: EditPlan, step_index: int, latents: torch.Tensor) -> None:
        if step_index == 2:
            raise ValueError("enough")

    scheduler = Scheduler(runner)
    scheduler.submit(job(edit(4, 3)), watch=tell)
    stopped = scheduler.submit(job(edit(4, 5)), watch=stop)
    scheduler.drain()
    assert told == [(step, (2, 4, SIDE, SIDE)) for step in (1, 2, 3)]
    assert runner.rows == [8, 8, 4]
    with pytest.raises(ValueError, match="enough"):
        stopped.future.result()


def test_who_watches_may_change_latents_or_end_the_plan_with_those_that_it_has(runner):
    def zero(plan: EditPlan, step_index: int, latents: torch.Tensor) -> torch.Tensor | None:
        if step_index == plan.steps:
            return latents * 0
        return None

    def end(plan: EditPlan, step_index: int, latents: torch.Tensor) -> None:
        if step_index == 2:
            seen.append(latents)
            raise Enough

    seen: list[torch.Tensor] = []
    scheduler = Scheduler(runner)
    plans = [edit_plan(1, 2, collect=True) for _ in range(3)]
    changed, ended, plain = (
        scheduler.submit(one_pass(one), watch=watch)
        for one, watch in zip(plans, (zero, end, None), strict=True)
    )
    wrong = scheduler.submit(one_pass(plans[0]), watch=lambda plan, step_index, latents: latents[:1])
    scheduler.drain()
    assert not changed.future.result().latents.any()
    stopped = ended.future.result()
    assert torch.equal(stopped.latents, seen[0]) and stopped.steps == 2
    assert stopped.maps.sum(-1).allclose(torch.ones(1), atol=1e-4)
    alike(plain.future.result(), denoise([plans[2]], runner)[0])
    with pytest.raises(
        PlanError, match=r"got latents \(1, 4, 8, 8\), wanted \(2, 4, 8, 8\), as they were given"
    ):
        wrong.future.result()


def test_guidance_that_stops_gives_its_rows_to_others(runner):
    scheduler = Scheduler(runner, max_rows=6)
    wanted = [edit_plan(1, 2, guidance_until=0.4, collect=True), plan(3), plan(4)]
    tickets = [scheduler.submit(one_pass(one)) for one in wanted]
    scheduler.drain()
    assert runner.rows[:4] == [6, 6, 6, 6]
    for one, ticket in zip(wanted, tickets, strict=True):
        alike(ticket.future.result(), denoise([one], runner)[0])


@pytest.mark.parametrize("max_rows", [None, 8, 10])
def test_an_edit_among_unrelated_edits_equals_the_edit_alone(runner, max_rows: int | None):
    every = plans()
    for together, one in zip(
        denoise(list(every.values()), runner, max_rows=max_rows), every.values(), strict=True
    ):
        alike(together, denoise([one], runner)[0])


def test_calls_are_filled_up_to_the_sizes_that_a_runner_takes():
    seen = []

    class Sized(PyTorchRunner):
        capabilities = Capabilities(rows=(4, 8))

        def infer(self, inputs, outputs=None, *, self_layers=None):
            lists = (*EDIT_NAMES, "map_row")
            of_rows = {name: tensor for name, tensor in inputs.items() if name not in lists}
            seen.append({tensor.shape[name.startswith("self_")] for name, tensor in of_rows.items()})
            return super().infer(inputs, outputs, self_layers=self_layers)

    with Sized(tiny_unet(), map_divisor=1) as opened, Watching() as free:
        wanted = [edit_plan(1, 2), plan(3)]
        for got, one in zip(denoise(wanted, opened), wanted, strict=True):
            alike(got, denoise([one], free)[0])
    assert seen == [{8}] * STEPS


def test_a_capture_that_can_not_be_is_refused(runner):
    with pytest.raises(AdapEditError, match="runner 'pytorch' on cpu can't be captured"):
        Scheduler(runner, capture=True)


def test_a_scheduler_that_is_idle_holds_no_buffers(runner):
    scheduler = Scheduler(runner)
    for one in plans().values():
        scheduler.submit(one_pass(one))
    scheduler.drain()
    assert not scheduler._batches and not scheduler._jobs and not scheduler._running
