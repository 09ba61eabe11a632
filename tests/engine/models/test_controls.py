from typing import Any

import torch

from adapedit_engine.models.controls import CONTROL_NAMES, Controls
from tests.engine.tiny import there

SIZES: dict[str, Any] = {"batch": 4, "tokens": 6, "pixels": 9, "layers": 3}


def identity(**changes) -> Controls:
    return Controls(**{**Controls.identity(**SIZES).as_dict(), **changes})


def test_identity_names_every_field():
    controls = identity()
    assert tuple(controls.as_dict()) == CONTROL_NAMES
    assert controls.edited
    assert there(controls.source_row).tolist() == there(controls.edited_row).tolist() == [0, 1, 2, 3]
    assert there(controls.self_query_row).tolist() == [[0, 1, 2, 3]] * 3


def test_identity_shares_no_tensor_between_fields():
    """An export that is shown one tensor for two inputs takes them for one input."""
    pointers = [tensor.data_ptr() for tensor in identity().as_dict().values()]
    assert len(set(pointers)) == len(pointers)


def test_nothing_given_is_nothing_edited():
    assert not Controls().edited
    assert Controls().as_dict() == {}


def test_dict_round_trip_ignores_other_inputs():
    tensors = {**identity().as_dict(), "sample": torch.zeros(1)}
    again = Controls.from_dict(tensors)
    assert again.as_dict().keys() == identity().as_dict().keys()
