"""A few numbers of each weight, by which a change is seen that nothing else tells of.

What is done in place through `.data`, as adapters are merged by some libraries, raises no version; tensors made in
inference mode have none; and memory that was freed comes back under its old address. To read all weights of a small
UNet takes longer than to set up an edit (2.5 ms, which is the memory's pace), and merging changes all numbers.
"""

from __future__ import annotations

from torch import Tensor

PLACES = 12


def sample(weight: Tensor) -> Tensor:
    """At most `PLACES` places along each dimension, at even distances: a view, which shows later changes."""
    return weight.detach()[tuple(slice(None, None, -(-size // PLACES) or 1) for size in weight.shape)]
