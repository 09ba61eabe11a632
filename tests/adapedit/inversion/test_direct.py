"""Direct inversion against its formulas: the source on its way back, and what of its correction targets get."""

from __future__ import annotations

import pytest
import torch

from adapedit import AdapEditPipeline
from tests.helpers.methods import run
from tests.helpers.pictures import context_of, request, settings
from tests.helpers.plain_ddim import PlainDDIM


@pytest.mark.parametrize("offset", [0.0, 0.5, 1.0])
def test_latents_are_those_of_the_formulas(pipe: AdapEditPipeline, offset: float) -> None:
    asked = request(settings("direct", targets=offset), num_inference_steps=10)
    context = context_of(pipe, asked)
    (found,) = run(pipe, [context.plan(("source", "target"))])

    ddim = PlainDDIM(pipe, context)
    assert context.image_latents is not None
    path = ddim.path(context.image_latents)
    torch.testing.assert_close(context.latents, path[0], rtol=1e-4, atol=1e-4)
    source = target = path[0]
    with torch.no_grad():
        for step in range(ddim.steps):
            missed = path[step + 1] - ddim.next(source, step, ddim.guided(source, step, ddim.source))
            target = ddim.next(target, step, ddim.guided(target, step, ddim.target)) + offset * missed
            source = path[step + 1]
    torch.testing.assert_close(found.latents[:1], context.image_latents, rtol=0, atol=0)
    torch.testing.assert_close(found.latents[1:], target, rtol=1e-4, atol=1e-4)
