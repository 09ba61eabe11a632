"""A small soak: faults at random, and every edit ends exactly once, as it would have undisturbed."""

from adapedit import AdapEditPipeline
from benchmarks.soak import soak


def test_every_edit_ends_once_and_survivors_are_undisturbed(pipe: AdapEditPipeline):
    # How many calls there are depends on what arrives together; at this rate a hundred of them can't go well.
    report = soak(pipe, edits=60, steps=3, check_every=2, errors=0.1)
    assert report["wrong"] == []
    assert report["faults_raised"] > 0 and report["calls_tried_again"] > 0
    assert sum(report["outcomes"].values()) == 60 and report["outcomes"]["failed"] >= 1
