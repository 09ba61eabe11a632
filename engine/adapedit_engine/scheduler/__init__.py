"""Iteration-level scheduling: unrelated edits join and leave the UNet's batch between steps."""

from adapedit_engine.padding import slot_for
from adapedit_engine.scheduler.core import Scheduler
from adapedit_engine.scheduler.executor import EngineExecutor, Executor
from adapedit_engine.scheduler.jobs import AdmissionError, DeadlineError, Passes, SchedulerStats, Ticket
from adapedit_engine.scheduler.memory import CallBytes, measure_call_bytes, plan_bytes
from adapedit_engine.scheduler.slots import CachedRunner

__all__ = [
    "AdmissionError",
    "CachedRunner",
    "CallBytes",
    "DeadlineError",
    "EngineExecutor",
    "Executor",
    "Passes",
    "Scheduler",
    "SchedulerStats",
    "Ticket",
    "measure_call_bytes",
    "plan_bytes",
    "slot_for",
]
