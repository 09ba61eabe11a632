from collections.abc import Iterator

import pytest
import torch

from adapedit_engine import PyTorchRunner
from adapedit_engine.static_steps import StaticSteps
from tests.engine.tiny import tiny_unet


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """The tensors here are so small that a second thread only costs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def loop() -> Iterator[PyTorchRunner]:
    """A runner whose edits run in the loop."""
    with PyTorchRunner(tiny_unet(), map_divisor=1, static_steps=False) as opened:
        yield opened


@pytest.fixture(params=[False, True], ids=["as on the CPU", "padded as on CUDA"])
def static(request: pytest.FixtureRequest) -> Iterator[PyTorchRunner]:
    """The same whose edits run by static steps."""
    runner = PyTorchRunner(tiny_unet(), map_divisor=1, static_steps=True)
    runner.kept_steps = StaticSteps(runner, padded=request.param)
    with runner:
        yield runner
