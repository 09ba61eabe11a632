"""Null-text inversion in full against its formulas: the way back, Adam on each step's empty prompt, and the edit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adapedit import AdapEditPipeline
from tests.helpers.methods import run
from tests.helpers.pictures import context_of, request, settings
from tests.helpers.plain_ddim import PlainDDIM


def searched(ddim: PlainDDIM, path: list[Tensor], inner: int, rate: float, enough: float) -> list[Tensor]:
    """The empty prompt of each step."""
    found, empty, x = [], ddim.empty.clone(), path[0]
    for step in range(ddim.steps):
        empty = empty.detach().clone().requires_grad_(True)
        adam = torch.optim.Adam([empty], lr=rate * (1 - step / (2 * ddim.steps)))
        with torch.no_grad():
            text = ddim.noise(x, step, ddim.source)
        for _ in range(inner):
            without = ddim.noise(x, step, empty)
            reached = ddim.next(x, step, without + ddim.guidance * (text - without))
            loss = torch.nn.functional.mse_loss(reached, path[step + 1])
            adam.zero_grad()
            loss.backward()
            adam.step()
            if float(loss) < enough + step * 2e-5:
                break
        with torch.no_grad():
            x = ddim.next(x, step, ddim.guided(x, step, ddim.source, empty))
        found.append(empty.detach())
    return found


@pytest.mark.parametrize("early_stop", [0.0, 1e-5, 3e-3])
def test_latents_are_those_of_the_formulas(pipe: AdapEditPipeline, early_stop: float) -> None:
    knobs = {"inner_steps": 10, "learning_rate": 0.01, "early_stop": early_stop}
    context = context_of(pipe, request(settings("null-text", **knobs), num_inference_steps=10))
    (found,) = run(pipe, [context.plan(("source", "target"))])

    ddim = PlainDDIM(pipe, context)
    assert context.image_latents is not None and context.unconditional_steps is not None
    path = ddim.path(context.image_latents)
    empties = searched(ddim, path, 10, 0.01, early_stop)
    for track, text in enumerate((ddim.source, ddim.target)):
        x = path[0]
        with torch.no_grad():
            for step in range(ddim.steps):
                x = ddim.next(x, step, ddim.guided(x, step, text, empties[step]))
        torch.testing.assert_close(found.latents[track : track + 1], x, rtol=1e-4, atol=1e-4)
    # It is worth the search: without it the source ends further from the picture.
    with torch.no_grad():
        x = path[0]
        for step in range(ddim.steps):
            x = ddim.next(x, step, ddim.guided(x, step, ddim.source))
    lost = [float((each - context.image_latents).square().mean()) for each in (found.latents[:1], x)]
    assert lost[0] < lost[1]
