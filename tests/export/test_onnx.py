"""A graph on disk: what ONNX's checker and ONNX Runtime read back."""

from __future__ import annotations

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from adapedit_export import onnx
from adapedit_export.graphs import Traceable
from adapedit_export.options import ExportError


class Parts(nn.Module):
    """A product, in as many parts as the keys and values of a deep model have."""

    def __init__(self) -> None:
        super().__init__()
        self.product = nn.Linear(8, 140)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.product(x).split([1, 2] * 46 + [2], dim=1)
        return sum(parts[1::2], torch.zeros(()))


def test_sizes_of_many_parts_stay_in_the_graph_beside_large_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "EXTERNAL_FROM", 0)
    monkeypatch.setattr(
        onnx, "INLINE_UP_TO", 2000
    )  # of 4,480 bytes that the weight has, and 744 of the sizes
    module, x = Parts(), torch.randn(3, 8)
    traceable = Traceable(module=module, inputs={"x": x}, open_sides={}, outputs=("y",))
    spec = onnx.save(onnx.trace(traceable, 23), tmp_path, "parts")
    assert (tmp_path / "parts.onnx.data").stat().st_size >= 140 * 8 * 4
    (y,) = onnxruntime.InferenceSession(tmp_path / spec.file).run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), module(x).detach())


def test_a_file_with_wrong_shapes_or_without_its_weights_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "EXTERNAL_FROM", 0)
    monkeypatch.setattr(onnx, "INLINE_UP_TO", 100)
    module, x = nn.Linear(8, 16), torch.randn(3, 8)
    model = onnx.trace(Traceable(module=module, inputs={"input": x}, open_sides={}, outputs=("y",)), 23)
    onnx.save(model, tmp_path, "linear")
    (tmp_path / "linear.onnx.data").unlink()
    with pytest.raises(ExportError, match="checker refuses linear.onnx"):
        onnx.check(tmp_path / "linear.onnx")
    (output,) = model.graph.outputs
    output.shape = type(output.shape)([3, 17])
    with pytest.raises(ExportError, match="checker refuses linear.onnx"):
        onnx.save(model, tmp_path, "linear")
