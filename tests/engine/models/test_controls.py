from typing import Any

import pytest
import torch

from adapedit_engine.models.controls import CONTROL_NAMES, ControlError, Controls
from tests.engine.tiny import there

SIZES: dict[str, Any] = {"batch": 4, "tokens": 6, "pixels": 9, "layers": 3}


def identity(**changes) -> Controls:
    return Controls(**{**Controls.identity(**SIZES).as_dict(), **changes})


def test_identity_fits_and_names_every_field():
    controls = identity()
    controls.validate(**SIZES)
    assert tuple(controls.as_dict()) == CONTROL_NAMES
    assert controls.edited
    assert there(controls.source_row).tolist() == there(controls.edited_row).tolist() == [0, 1, 2, 3]
    assert there(controls.self_query_row).tolist() == [[0, 1, 2, 3]] * 3


def test_identity_shares_no_tensor_between_fields():
    """An export that is shown one tensor for two inputs takes them for one input."""
    pointers = [tensor.data_ptr() for tensor in identity().as_dict().values()]
    assert len(set(pointers)) == len(pointers)


def test_nothing_given_is_nothing_edited():
    Controls().validate(**SIZES)
    assert not Controls().edited
    assert Controls().as_dict() == {}


def test_dict_round_trip_ignores_other_inputs():
    tensors = {**identity().as_dict(), "sample": torch.zeros(1)}
    again = Controls.from_dict(tensors)
    assert again.as_dict().keys() == identity().as_dict().keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_map": None, "own_weight": None}, "controls lack token_map, own_weight"),
        ({"token_map": torch.zeros(4, 6, 5)}, r"token_map has shape \(4, 6, 5\), wanted \(4, 6, 6\)"),
        ({"spatial_map": torch.zeros(4, 10)}, r"spatial_map has shape \(4, 10\), wanted \(4, 9\)"),
        ({"source_row": torch.zeros(4)}, "source_row is torch.float32, wanted torch.int64"),
        ({"own_weight": torch.zeros(4, 6, dtype=torch.bool)}, "own_weight is torch.bool, wanted a floating"),
        ({"source_row": torch.tensor([0, 1, 2, 4])}, r"source_row names a row outside 0..3"),
        ({"map_row": torch.tensor([-1])}, r"map_row names a row outside 0..3"),
        (
            {"edited_row": torch.arange(3)},
            r"source_row has shape \(4,\), wanted \(3,\) for 3 edits of 4 rows",
        ),
        ({"edited_row": None}, "controls lack edited_row: give all of edited_row, source_row"),
        ({"self_key_row": torch.full((3, 4), -1)}, r"self_key_row names a row outside 0..3"),
        ({"self_value_row": torch.zeros(2, 4, dtype=torch.int64)}, r"self_value_row has shape \(2, 4\)"),
    ],
)
def test_misfits_are_named(changes, message: str):
    with pytest.raises(ControlError, match=message):
        identity(**changes).validate(**SIZES)
