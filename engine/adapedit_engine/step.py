"""One step of edits in a batch: model, FWT and DPS, guidance, the schedule's update, and local blends.

It stands alone because it is the one place where a step is written down, for every runner, captured or not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from adapedit_engine.batch import Batch, Call, Seat
from adapedit_kernels import guided_step


@torch.inference_mode()
def step(batch: Batch, seats: Sequence[Seat] | None = None) -> None:
    """Advance neighbouring edits by one step; by default all. A call that fails changes nothing."""
    seats = batch.seats if seats is None else seats
    batch.feed(seats)
    run(batch.call(seats))
    batch.stepped(seats)


def run(call: Call) -> None:
    """What of a step is captured: it waits for nothing, and reads and writes the same buffers at every call."""
    outputs = call.batch.runner.infer(call.inputs(), call.outputs, self_layers=call.self_layers)
    noise_pred = outputs["noise_pred"]
    seen = call.observe(outputs)
    latents = guided_step(**call.update(noise_pred, seen), check_values=False)
    kept = call.history(noise_pred)
    history = None if kept is None else guided_step(**kept, check_values=False)
    call.advance(latents, history, seen)
