"""What the benchmark of the kernels rests on: its rivals are right, its bytes are counted, its gate can close."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from adapedit_kernels import edited_attention
from benchmarks import gpu, kernels
from benchmarks.kernels import Layer, eager, error, least_bytes, make_case, variants
from tests.kernels.inputs import assert_close

LAYER = Layer(side=3, width=8)


def a_case(dtype: torch.dtype, rows: int = 4) -> kernels.Case:
    return make_case(LAYER, rows, dtype, "cpu", heads=2, tokens=5)


def test_every_fourth_row_is_edited_from_two_rows_before() -> None:
    case = a_case(torch.float32, 8)
    assert case.edits["edited_row"].tolist() == [3, 7] and case.edits["source_row"].tolist() == [1, 5]
    assert case.map_row.tolist() == [1, 3, 5, 7]


def test_the_eager_way_gives_the_same() -> None:
    case = a_case(torch.float64)
    assert_close(eager(case)(), edited_attention(**case.arguments()), torch.float32)


def test_fused_attention_is_what_rows_without_an_edit_get() -> None:
    runs = variants(a_case(torch.float32), "reference")
    assert_close(runs["edited"]()[:3], runs["sdpa"]().transpose(1, 2).flatten(2)[:3], torch.float32)


def test_bytes_are_those_of_every_tensor_once() -> None:
    row_of_query, row_of_key, probs = 2 * 9 * 8 * 2, 2 * 5 * 8 * 2, 4 * 2 * 9 * 5 * 2
    plain = 4 * (2 * row_of_query + 2 * row_of_key)
    found = least_bytes(a_case(torch.float16))
    assert found["sdpa"] == plain
    assert found["eager"] == plain + row_of_query + row_of_key + 16 + 4 * (25 + 5 + 5 + 9) + 4 * probs
    assert found["edited"] == plain + 3 * row_of_query + 2 * row_of_key + 4 * row_of_key + 4 * 9
    assert found["maps"] == 2 * (row_of_query + row_of_key) + 2 * 2 * 9 * 5 * 4


def test_the_gate_is_open_for_what_is_right_and_closed_for_what_is_not() -> None:
    assert all(entry["right"] for entry in kernels.gate("cpu", (LAYER,), "reference"))
    case = a_case(torch.float32)
    poisoned = case.value.clone()
    poisoned[0, 0, 0] = float("nan")
    assert not error(dataclasses.replace(case, value=poisoned), "reference")["output"] <= 1e-5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("script", ["kernels", "gpu"])
def test_without_a_device_one_line_says_so(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [script])
    assert (kernels.main() if script == "kernels" else gpu.main([])) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "found none" in captured.err
