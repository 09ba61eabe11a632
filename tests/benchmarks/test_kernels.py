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


def test_every_fourth_row_is_edited_from_two_rows_before() -> None:
    case = make_case(LAYER, 8, torch.float32, "cpu", heads=2, tokens=5)
    assert case.controls["source_row"].tolist() == [0, 1, 2, 1, 4, 5, 6, 5]
    assert case.edited_rows.tolist() == [3, 7]


def test_the_eager_way_gives_the_same() -> None:
    case = make_case(LAYER, 4, torch.float64, "cpu", heads=2, tokens=5)
    wanted = edited_attention(case.query, case.key, case.value, **case.controls)
    assert_close(eager(case)(), wanted, torch.float32)


def test_fused_attention_is_what_rows_without_an_edit_get() -> None:
    runs = variants(make_case(LAYER, 4, torch.float32, "cpu", heads=2, tokens=5), "reference")
    assert_close(runs["edited"]()[:3], runs["sdpa"]()[:3], torch.float32)


def test_bytes_are_those_of_every_tensor_once() -> None:
    case = make_case(LAYER, 4, torch.float16, "cpu", heads=2, tokens=5)
    row_of_query, row_of_key, probs = 2 * 9 * 8 * 2, 2 * 5 * 8 * 2, 4 * 2 * 9 * 5 * 2
    controls = 8 + 4 * (25 + 5 + 5 + 9)
    plain = 4 * (2 * row_of_query + 2 * row_of_key)
    edited = plain + row_of_query + row_of_key + controls
    found = least_bytes(case)
    assert (found["plain"], found["edited"], found["eager"]) == (plain, edited, edited + 4 * probs)
    assert found["edited with maps"] == edited + 2 * 4 * 9 * 5 * 4


def test_the_gate_is_open_for_what_is_right_and_closed_for_what_is_not() -> None:
    assert all(entry["right"] for entry in kernels.gate("cpu", (LAYER,), "reference"))
    case = make_case(LAYER, 4, torch.float32, "cpu", heads=2, tokens=5)
    poisoned = case.value.clone()
    poisoned[0, 0, 0, 0] = float("nan")
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
