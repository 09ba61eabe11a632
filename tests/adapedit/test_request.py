"""Arguments of a wrong kind from Python: refused in one line, before any work."""

from __future__ import annotations

import pytest

from adapedit import AdapEditPipeline
from adapedit_kernels.errors import AdapEditError
from tests.helpers.edits import SOURCE, TARGET, request

WRONG = {
    "generator": (lambda pipe: pipe(SOURCE, TARGET, generator=3), "wanted a torch.Generator"),
    "callback": (lambda pipe: pipe(SOURCE, TARGET, callback=3), r"callback\(done, total\)"),
    "max_rows": (lambda pipe: pipe.edit_batch([request()], max_rows="4"), "max_rows is '4'"),
    "no rows": (lambda pipe: pipe.edit_batch([request()], max_rows=0), "wanted a whole number from 1"),
    "fit": (lambda pipe: pipe(SOURCE, TARGET, image="there.png", fit="fill"), "crop, pad, stretch"),
    "server's rows": (lambda pipe: pipe.serve(max_rows=0), "max_rows is 0"),
    "server's queue": (lambda pipe: pipe.serve(max_pending=0), "max_pending is 0"),
    "server's cache": (lambda pipe: pipe.serve(cache_bytes=-1), "from 0 on"),
    "device": (lambda _: AdapEditPipeline.from_pretrained(device=None), "device 'None' can't be used"),
    "dtype": (lambda _: AdapEditPipeline.from_pretrained(torch_dtype="float16"), "torch.float16"),
    "model": (lambda _: AdapEditPipeline.from_pretrained("a" * 5000), "there is no model at"),
    "bundle": (lambda _: AdapEditPipeline.from_bundle(None), "folder is None, wanted a path"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_kind_of_argument_is_refused_in_one_line(name, pipe):
    call, message = WRONG[name]
    with pytest.raises(AdapEditError, match=message) as raised:
        call(pipe)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


def test_a_folder_that_is_no_path_is_refused(pipe):
    result = pipe.edit_batch([request(steps=1)])[0]
    with pytest.raises(AdapEditError, match="folder is None, wanted a path"):
        result.save(None)
