"""The controlled UNet as a graph: exported with a dynamic batch, fed every control, driven by the same loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch.export import Dim

from adapedit_engine.models.controls import CONTROL_NAMES, EDIT_NAMES, Controls
from adapedit_engine.models.unet import INPUT_NAMES, OUTPUT_NAMES, ControlledUNet
from adapedit_engine.plan import SelfEdit
from adapedit_engine.runners.base import Capabilities
from adapedit_engine.runners.pytorch import PyTorchRunner, why_not_compiled
from adapedit_engine.scheduler import denoise
from tests.engine.tiny import SIDE, TEXT, TOKENS, edit_plan, largest, noise, plan, self_interval, tiny_unet
from tests.helpers.defaults import traceable
from tests.helpers.graph_unet import GraphUNet

LAYERS = 7
CODE = (
    pytest.mark.slow,
    pytest.mark.skipif(
        why_not_compiled("cpu") is not None, reason="inductor on the CPU needs a C++ compiler"
    ),
)
SELF_TABLES = ("self_query_row", "self_key_row", "self_value_row")


def example(batch: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Inputs of a call in which every odd row takes from the row before it, and all but the first show their maps."""
    source, edited = torch.arange(batch) // 2 * 2, torch.arange(1, batch, 2)
    edits, maps = len(edited), batch - 1
    identity = Controls.identity(
        batch=batch, tokens=TOKENS, pixels=SIDE**2, layers=LAYERS, edits=edits, maps=maps
    ).as_dict()
    return {
        "sample": noise(batch, 4, SIDE, SIDE, seed=seed),
        "timestep": torch.linspace(999, 0, batch),
        "encoder_hidden_states": noise(batch, TOKENS, TEXT, seed=seed + 1),
        **identity,
        "edited_row": edited,
        "source_row": source[edited],
        "spatial_weight": noise(edits, TOKENS, seed=seed + 2).sigmoid(),
        "spatial_map": noise(edits, SIDE**2, seed=seed + 3).sigmoid(),
        "map_row": torch.arange(1, batch),
        "self_query_row": source.expand(LAYERS, batch).contiguous(),
    }


@pytest.fixture(scope="module")
def unet():
    return tiny_unet()


@pytest.fixture(scope="module")
def graph(unet):
    batch = Dim("batch", min=2, max=32)  # from 64 on diffusers' upsampling takes another path
    lists = dict.fromkeys(EDIT_NAMES, Dim("edits", min=1, max=32)) | {"map_row": Dim("maps", min=1, max=32)}
    shapes = {
        name: {1: batch} if name in SELF_TABLES else {0: lists.get(name, batch)} for name in INPUT_NAMES
    }
    with ControlledUNet(unet, map_divisor=1).attached() as controlled:
        return torch.export.export(
            GraphUNet(controlled), args=(), kwargs=example(4), dynamic_shapes=shapes, strict=False
        )


def test_inputs_are_named_as_the_controls(graph):
    assert graph.graph_signature.user_inputs == INPUT_NAMES
    assert set(CONTROL_NAMES) < set(INPUT_NAMES)


@pytest.mark.parametrize("batch", [2, 4, 7])
def test_exported_graph_matches_at_any_batch(unet, graph, batch: int):
    inputs = example(batch, seed=10)
    with ControlledUNet(unet, map_divisor=1).attached() as controlled, torch.no_grad():
        expected = GraphUNet(controlled)(**inputs)
    for got, wanted in zip(graph.module()(**inputs), expected, strict=True):
        assert got.shape == wanted.shape
        assert largest(got, wanted) < 1e-5


class GraphRunner(PyTorchRunner):
    """A runner over the exported graph: takes the prompt itself, and every control in every call."""

    capabilities = Capabilities(all_controls=True)

    def __init__(self, unet: Any, graph: Any) -> None:
        super().__init__(unet, map_divisor=1)
        self.module = graph.module()
        self.calls: list[set[str]] = []

    def condition(self, encoder_hidden_states: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"encoder_hidden_states": encoder_hidden_states}

    def infer(
        self, inputs: Mapping[str, torch.Tensor], outputs: Sequence[str] | None = None, **_: Any
    ) -> dict[str, torch.Tensor]:
        self.calls.append(set(inputs))
        named = dict(zip(OUTPUT_NAMES, self.module(**inputs), strict=True))
        return {name: named[name] for name in outputs or OUTPUT_NAMES}


def test_whole_edits_through_the_graph_equal_those_in_pytorch(unet, graph):
    table = self_interval(unet, 0.5)
    plans = [
        plan(1),
        edit_plan(1, 2, collect=True, self_attention=SelfEdit(query=table, key=table)),
        edit_plan(3, 4, 5),
    ]
    with PyTorchRunner(unet, map_divisor=1) as runner:
        expected = denoise(plans, runner)
    runner = GraphRunner(unet, graph)
    for max_rows in (None, 6):
        for got, wanted in zip(denoise(plans, runner, max_rows=max_rows), expected, strict=True):
            # An untrained model's latents grow to 40: what is rounded otherwise grows with them.
            assert largest(got.latents, wanted.latents) < 1e-5 * float(wanted.latents.abs().max())
    assert all(names == set(INPUT_NAMES) for names in runner.calls)


@pytest.mark.parametrize(
    "backend",
    ["eager", pytest.param("aot_eager", marks=pytest.mark.slow), pytest.param("inductor", marks=CODE)],
)
def test_compiles_as_one_graph(unet, backend: str):
    """`fullgraph` raises at a break. The first backend runs what was captured as it is."""
    torch.compiler.reset()
    inputs = example(4)
    with ControlledUNet(unet, map_divisor=1).attached() as controlled, torch.no_grad(), traceable():
        compiled = torch.compile(GraphUNet(controlled), fullgraph=True, backend=backend)
        for got, wanted in zip(compiled(**inputs), GraphUNet(controlled)(**inputs), strict=True):
            assert largest(got, wanted) < 1e-4
