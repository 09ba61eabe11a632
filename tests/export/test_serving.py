"""Bundles behind a server: the pictures are those of a batch."""

from __future__ import annotations

from adapedit.cli.main import run
from tests.helpers.edits import LONGER, SOURCE, grey_levels, request


def test_a_server_edits_as_a_batch_does(in_onnxruntime):
    edits = [request(), request(SOURCE, LONGER, method="prompt-to-prompt", seed=4)]
    expected = in_onnxruntime.edit_batch(edits)
    with in_onnxruntime.serve() as server:
        got = [future.result() for future in [server.submit(edit) for edit in edits]]
        again = server.submit(edits[0]).result()
        assert server.stats.caches["prompts"].hits >= 3
    for one, other in zip([*got, again], [*expected, expected[0]], strict=True):
        assert grey_levels(one.source_image, other.source_image) <= 1
        assert grey_levels(one.target_image, other.target_image) <= 1


def test_the_command_batch_takes_a_bundle(bundle, tmp_path):
    file, out = tmp_path / "r.jsonl", tmp_path / "out"
    file.write_text('{"source_prompt": "a dog", "target_prompt": "a cat", "num_inference_steps": 1}')
    assert run(["batch", str(file), "--model", str(bundle.folder), "--out", str(out)]) == 0
    assert (out / "00001" / "target.png").is_file()
