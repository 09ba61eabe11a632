"""Forms that ONNX Runtime is faster with compute what was there before, by fewer nodes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import pytest

from adapedit_export.options import Precision
from adapedit_export.rewrite import rewrite

ort = pytest.importorskip("onnxruntime")

ATTENTION = """
<ir_version: 10, opset_import: ["": 23]>
g (float[2, 5, 12] q, float[2, 5, 12] k, float[2, 5, 12] v) => (float[2, 5, 12] y)
<int64[4] heads = {2, 5, 3, 4}, int64[3] joined = {2, 5, 12}>
{
  q4 = Reshape(q, heads)
  k4 = Reshape(k, heads)
  v4 = Reshape(v, heads)
  qt = Transpose<perm = [0, 2, 1, 3]>(q4)
  kt = Transpose<perm = [0, 2, 1, 3]>(k4)
  vt = Transpose<perm = [0, 2, 1, 3]>(v4)
  a = Attention<scale = 0.3, is_causal = CAUSAL>(qt, kt, vt)
  at = Transpose<perm = [0, 2, 1, 3]>(a)
  y = Reshape(at, joined)
}
"""
GATED = """
<ir_version: 10, opset_import: ["": 23]>
g (float[2, 3, 2] x, float[2, 4] other) => (float[2, 3, 2] y)
<float[2, 4] w = {1, -2, 3, 4, 0.5, 6, -7, 8}, float[4] b = {1, 2, 3, 4}>
{
  product = MatMul(x, WEIGHT)
  sum = Add(product, b)
  one, two = Split<axis = -1, num_outputs = 2>(sum)
  gate = Gelu(two)
  y = Mul(one, gate)
}
"""
SCALED = """
<ir_version: 10, opset_import: ["": 23]>
g (float[2, 2, 3, 3] x) => (float[2, 1, 3, 3] y)
<float[2, 1, 1] s = {2, -3}, float[2, 1, 1] t = {0.5, 7}, float[1, 2, 1, 1] w = {1.5, -2}, float[1] b = {1}>
{
  scaled = Mul(x, s)
  shifted = Add(scaled, t)
  y = Conv(shifted, w, b)
}
"""


def before_and_after(text: str) -> tuple[list[str], list[str]]:
    """Kinds of nodes before and after; the values are compared here."""
    old = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text), data_prop=True)
    model = onnx_ir.from_proto(old)
    rewrite(model, Precision.FLOAT32)
    new = onnx_ir.to_proto(model)
    onnx.checker.check_model(new)
    generator = np.random.default_rng(0)
    inputs = {
        value.name: generator.standard_normal([d.dim_value for d in value.type.tensor_type.shape.dim]).astype(
            "f4"
        )
        for value in old.graph.input
    }
    sessions = [
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]) for m in (old, new)
    ]
    expected, got = (session.run(None, inputs)[0] for session in sessions)
    assert np.abs(expected - got).max() < 1e-5
    kinds = [[node.op_type for node in m.graph.node] for m in (old, new)]
    return kinds[0], kinds[1]


@pytest.mark.parametrize("causal", ["0", "1"])
def test_heads_stay_together(causal):
    assert before_and_after(ATTENTION.replace("CAUSAL", causal))[1] == ["Attention"]


def test_gated_units_are_multiplied_apart():
    after = before_and_after(GATED.replace("WEIGHT", "w"))[1]
    assert sorted(after) == ["Add", "Add", "Gelu", "MatMul", "MatMul", "Mul"]


def test_a_norms_scale_goes_into_the_convolution():
    assert before_and_after(SCALED)[1] == ["Conv"]


@pytest.mark.parametrize(
    "text",
    [
        GATED.replace("WEIGHT", "other"),
        SCALED.replace("Conv(shifted, w, b)", "Conv(shifted, w)"),
        SCALED.replace("float[2, 1, 3, 3] y)", "float[2, 1, 3, 3] y, float[2, 2, 3, 3] shifted)"),
        ATTENTION.replace("CAUSAL", "0").replace(
            "float[2, 5, 12] y)", "float[2, 5, 12] y, float[2, 3, 5, 4] a)"
        ),
    ],
    ids=["a weight that is an input", "no bias", "read elsewhere", "heads read elsewhere"],
)
def test_what_does_not_fit_stays(text):
    before, after = before_and_after(text)
    assert before == after
