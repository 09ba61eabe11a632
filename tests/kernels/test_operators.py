"""The operations as PyTorch operators: what compilers and exporters are told of them, and a UNet that uses them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from adapedit_engine.models.controls import Controls
from adapedit_engine.models.unet import ControlledUNet
from adapedit_engine.runners.pytorch import why_not_compiled as why_not
from adapedit_kernels import attention_maps, dispatch, edited_attention, guided_step
from adapedit_kernels.attention_maps import attention_maps_operator
from adapedit_kernels.edited_attention import edited_attention_operator
from adapedit_kernels.guided_step import guided_step_operator
from adapedit_kernels.spatial_similarity import spatial_similarity_operator
from adapedit_kernels.word_relation import word_relation_operator
from tests.engine.tiny import SIDE, TEXT, TOKENS, largest, noise, tiny_unet
from tests.helpers.defaults import traceable
from tests.helpers.graph_unet import GraphUNet
from tests.kernels.inputs import AttentionShape, attention_inputs, mixed_knobs, relation_inputs, step_inputs

SHAPE = AttentionShape(3, 2, 5, 7, 8)


def _attention_arguments(spatial: bool) -> tuple[Any, ...]:
    given = attention_inputs(SHAPE, torch.float32, spatial=spatial).arguments()
    names = ("edited_row", "source_row", "prepared", "spatial_map")
    edits = [tensor for name in names if (tensor := given[name]) is not None]
    return given["query"], given["key"], given["value"], given["heads"], edits, 0.4


def _maps_arguments(listed: bool) -> tuple[Any, ...]:
    given = attention_inputs(SHAPE, torch.float32).plain()
    rows = torch.tensor([2, 0]) if listed else None
    map_sum = torch.ones(2 if listed else SHAPE.batch, SHAPE.pixels, SHAPE.tokens)
    return given["query"], given["key"], given["heads"], rows, map_sum, 0.5, 0.4


def _step_arguments(noise: bool, blend: bool) -> tuple[Any, ...]:
    arguments = step_inputs(3, 2, (4, 3, 5), torch.float32, noise=noise, blend=blend)
    names = ("noise", "noise_weight", "blend_mask", "blend_source")
    return (*list(arguments.values())[:6], *(arguments.get(name) for name in names))


def _relation_arguments() -> tuple[Any, ...]:
    return (*relation_inputs(2, 9, 8, 6, torch.float32).values(), list(mixed_knobs(2)))


CALLS = {
    "edited attention": (edited_attention_operator, _attention_arguments(True)),
    "edited attention, S of 1": (edited_attention_operator, _attention_arguments(False)),
    "maps": (attention_maps_operator, _maps_arguments(True)),
    "maps of all rows": (attention_maps_operator, _maps_arguments(False)),
    "guided step": (guided_step_operator, _step_arguments(False, False)),
    "guided step with noise and blend": (guided_step_operator, _step_arguments(True, True)),
    "word relation": (word_relation_operator, _relation_arguments()),
    "spatial similarity": (
        spatial_similarity_operator,
        (torch.randn(2, 12, 5), torch.randn(2, 5), torch.ones(2), torch.tensor([True, False])),
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_operators_keep_what_they_promise(call: tuple[Any, tuple[Any, ...]]) -> None:
    """Schema, mutation, fake results and tracing with dynamic shapes, as PyTorch itself checks them."""
    operator, arguments = call
    torch.library.opcheck(operator, arguments)


@pytest.mark.usefixtures("operators_in_use")
def test_operators_compute_what_the_public_function_does() -> None:
    inputs = attention_inputs(SHAPE, torch.float32)
    given, queries = inputs.arguments(), inputs.plain()
    del queries["value"]
    by_reference = {"implementation": "reference"}
    assert torch.equal(edited_attention(**given), edited_attention(**given, **by_reference))
    assert torch.equal(attention_maps(**queries), attention_maps(**queries, **by_reference))


def test_auto_takes_the_operators_on_cuda_tensors() -> None:
    """Traced as on a CUDA device, with tensors that have no memory."""
    with FakeTensorMode():
        query = torch.empty(2, 9, 160, dtype=torch.float16, device="cuda")
        key = value = torch.empty(2, 77, 160, dtype=torch.float16, device="cuda")
        rows = torch.empty(1, dtype=torch.int64, device="cuda")
        prepared = torch.empty(2, 1, 1, 77, 160, dtype=torch.float16, device="cuda")
        edit = {"edited_row": rows, "source_row": rows, "prepared": prepared}
        out = edited_attention(query, key, value, heads=4, **edit)
        assert (out.shape, out.dtype, out.device.type) == (query.shape, torch.float16, "cuda")
        maps = attention_maps(query, key, heads=4, map_row=rows)
        assert (maps.shape, maps.dtype, maps.device.type) == ((1, 9, 77), torch.float32, "cuda")
        latents = torch.empty(1, 4, 8, 8, device="cuda")
        rows, weights = torch.empty(1, 2, dtype=torch.int64, device="cuda"), torch.empty(1, 2, device="cuda")
        single = torch.empty(1, device="cuda")
        noise_pred = torch.empty(2, 4, 8, 8, dtype=torch.float16, device="cuda")
        stepped = guided_step(noise_pred, latents, rows, weights, single, single)
        assert (stepped.shape, stepped.dtype) == (latents.shape, torch.float32)


@pytest.fixture
def operators_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        dispatch, "implementation_for", lambda *asked: asked[1] if asked[1] != "auto" else "triton"
    )


def _unet_inputs(batch: int) -> dict[str, Tensor]:
    source = torch.arange(batch) // 2 * 2
    return {
        "sample": noise(batch, 4, SIDE, SIDE, seed=0),
        "timestep": torch.linspace(999, 0, batch),
        "encoder_hidden_states": noise(batch, TOKENS, TEXT, seed=1),
        **Controls.identity(batch=batch, tokens=TOKENS, pixels=SIDE**2, layers=7).as_dict(),
        "source_row": source,
        "spatial_weight": noise(batch, TOKENS, seed=2).sigmoid(),
    }


def _attention_nodes(graph: torch.fx.Graph) -> int:
    return sum("adapedit_kernels" in str(node.target) for node in graph.nodes)


def _check_one_accumulator(graph: torch.fx.Graph, layers: int) -> None:
    """Zeros are made once, every layer at the map resolution adds its share, and the result is given out as it is."""
    nodes = [node for node in graph.nodes if "attention_maps" in str(node.target)]
    totals = {node.args[4] for node in nodes}
    assert len(nodes) == layers and len(totals) == 1
    (total,) = totals
    assert "zeros" in str(total.target)
    assert sum(node.args[5] for node in nodes) == pytest.approx(1)
    assert set(total.users) == {*nodes, graph.output_node()}


def test_a_unet_with_operators_compiles_and_exports_as_one_graph(operators_in_use: None) -> None:
    inputs, seen = _unet_inputs(4), []

    def backend(module: torch.fx.GraphModule, _: Any) -> Any:
        seen.append(_attention_nodes(module.graph))
        return module.forward

    made = ControlledUNet(tiny_unet(), map_divisor=1)
    with made.attached() as controlled, torch.no_grad(), traceable():
        unet = GraphUNet(controlled)
        wanted = unet(**inputs)
        compiled = torch.compile(unet, fullgraph=True, backend=backend)(**inputs)
        exported = torch.export.export(unet, args=(), kwargs=inputs, strict=False)
        specs = controlled.specs
    _check_one_accumulator(exported.graph, sum(c.level == specs.map_level for c in specs.cross_layers))
    assert seen == [_attention_nodes(exported.graph)] and seen[0] > 0
    for found in (compiled, exported.module()(**inputs)):
        for got, want in zip(found, wanted, strict=True):
            assert largest(got, want) < 1e-5


@pytest.mark.slow
@pytest.mark.skipif(why_not("cpu") is not None, reason="inductor on the CPU needs a C++ compiler")
def test_a_unet_with_operators_is_generated_code_around_them(operators_in_use: None) -> None:
    """What functionalisation and code generation make of one accumulator that several operators add to."""
    with ControlledUNet(tiny_unet(), map_divisor=1).attached() as controlled, torch.no_grad():
        unet = GraphUNet(controlled)
        compiled = torch.compile(unet, fullgraph=True)
        for batch_seed in range(2):  # the second call finds the code of the first
            inputs = _unet_inputs(4) | {"sample": noise(4, 4, SIDE, SIDE, seed=batch_seed)}
            for got, want in zip(compiled(**inputs), unet(**inputs), strict=True):
                assert largest(got, want) < 1e-4
