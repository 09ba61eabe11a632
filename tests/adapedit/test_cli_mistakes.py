"""Mistakes that the file system, the shell or a hurried hand make: one line each, and nothing lost."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

from adapedit.checkpoints import expanded, is_bundle
from adapedit.cli import knobs
from adapedit.cli.main import INTERRUPTED, USER_ERROR, run
from adapedit.edit import complete, make_context
from adapedit.images import ImageInput
from adapedit.loading import load_vocabulary
from adapedit.methods import make_settings
from adapedit.methods.adapedit import collapse_warnings
from adapedit.request import EditRequest
from adapedit.request_file import read_lines
from adapedit.result import OutputError, OutputFolder
from adapedit.sharing import Caches
from adapedit_engine.manifest import MANIFEST_FILE
from adapedit_kernels.errors import AdapEditError
from tests.helpers.edits import SOURCE, TARGET, grey_levels, request


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def one_line(capfd: pytest.CaptureFixture[str]) -> str:
    out, err = capfd.readouterr()
    assert not out and err.count("\n") == 1 and err.startswith("adapedit: ")
    return err


@pytest.mark.parametrize("model", ["a" * 300, "~nobody-is-called-so/model"])
def test_paths_that_can_not_be(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert not is_bundle(model)
    for command in ("edit", "compare"):
        assert run([command, SOURCE, TARGET, "--model", model, "--steps", "2"]) == USER_ERROR
        one_line(capfd)


def test_home_of_nobody_is_a_name() -> None:
    assert expanded("~nobody-is-called-so/x") == Path("~nobody-is-called-so/x")
    assert expanded("~") == Path.home()


def test_what_the_system_refuses_is_named(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "out/failures.jsonl")

    monkeypatch.setattr("adapedit.cli.show.run_edits", full)
    assert run(["edit", SOURCE, TARGET]) == USER_ERROR
    assert "out/failures.jsonl: No space left on device" in one_line(capfd)


def test_an_interruption_that_a_library_swallows(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def importing(*_: object, **__: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("cannot load module more than once per process") from None

    monkeypatch.setattr("adapedit.cli.show.run_edits", importing)
    before = signal.getsignal(signal.SIGINT)
    assert run(["edit", SOURCE, TARGET]) == INTERRUPTED
    assert one_line(capfd) == "adapedit: interrupted\n" and signal.getsignal(signal.SIGINT) is before


def test_a_folder_in_the_way_leaves_all_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "out" / "target.png").mkdir(parents=True)
    for name in ("edit.json", "source.png"):
        (tmp_path / "out" / name).write_text("before")
    with pytest.raises(OutputError, match=r"target\.png in it is a folder"), OutputFolder("out") as part:
        for name in ("edit.json", "source.png", "target.png"):
            (part / name).write_text("after")
    assert (tmp_path / "out" / "edit.json").read_text() == "before"
    assert (tmp_path / "out" / "source.png").read_text() == "before"


def test_values_with_a_colon() -> None:
    made = knobs.make("instruct-pix2pix", knobs.parse(["instruction=a dog: blue"]))
    assert made.instruction == "a dog: blue"
    made = knobs.make("prompt-to-prompt", knobs.parse(["equalizer=dog:2,red:0.5"]))
    assert [(each.word, each.value) for each in made.equalizer] == [("dog", 2.0), ("red", 0.5)]
    with pytest.raises(AdapEditError, match="write it as WORD:VALUE"):
        knobs.make("prompt-to-prompt", knobs.parse(["equalizer=dog"]))


def test_a_request_says_what_is_missing_in_a_line() -> None:
    with pytest.raises(AdapEditError, match="^source_prompt is missing$"):
        EditRequest.make(target_prompt=TARGET)
    with pytest.raises(AdapEditError) as caught:
        EditRequest.make(source_prompt=SOURCE, target_prompt=TARGET, image=b"x" * 100_000)
    assert len(str(caught.value)) < 200
    for where in ("w" * 300, None):
        with pytest.raises(AdapEditError, match=r"is no edit\.json"):
            EditRequest.read(where)  # type: ignore[arg-type]


def test_a_method_by_its_name_has_its_defaults() -> None:
    made = EditRequest.make(source_prompt=SOURCE, target_prompt=TARGET, method="masactrl")
    assert made.method == make_settings("masactrl")


def test_a_server_says_what_it_was_given(pipe) -> None:
    with pytest.raises(AdapEditError, match="budget_bytes is '1GB'"):
        pipe.serve(budget_bytes="1GB")
    with pipe.serve() as server:
        with pytest.raises(AdapEditError, match="got a dict"):
            server.submit({"source_prompt": SOURCE})
        with pytest.raises(AdapEditError, match="deadline is 'soon'"):
            server.submit(request(), deadline="soon")
        with pytest.raises(AdapEditError, match="deadline is nan"):
            server.submit(request(), deadline=float("nan"))
        with pytest.raises(AdapEditError, match="got one request"):
            server.stream(request())
        for ahead in (0, -1, "x"):
            with pytest.raises(AdapEditError, match="ahead is"):
                server.stream([request()], ahead=ahead)


def test_a_batch_may_be_any_iterable_and_a_wrong_one_is_named_by_its_place(pipe) -> None:
    with pytest.raises(AdapEditError, match="request 1: got a str"):
        pipe.edit_batch(each for each in (request(), "a red dog"))


def test_a_bundle_s_words(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / MANIFEST_FILE).write_text("{}")
    (folder / "tokenizer").symlink_to(tiny_folder / "tokenizer")
    specs = SimpleNamespace(in_channels=4, out_channels=4)
    opened = SimpleNamespace(folder=folder, manifest=SimpleNamespace(tokens=24, specs=specs))
    monkeypatch.setattr("adapedit.loading.Bundle.open", lambda where, verify: opened)
    found = load_vocabulary(folder)
    assert found.max_tokens == 24 and found.tokenizer("a red dog")["input_ids"]
    assert load_vocabulary(tiny_folder).name == str(tiny_folder)


def test_a_sweep_says_which_edit_it_warns_of_and_no_seed_that_is_not_all_edits(
    tiny_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    blank = ["--set", "alpha_tau=1", "--set", "threshold_mode=absolute"]
    options = ["--model", str(tiny_folder), "--steps", "2", "--device", "cpu", *blank]
    assert run(["sweep", SOURCE, TARGET, "--knob", "seed", "--values", "3,4", *options]) == 0
    printed = capfd.readouterr()
    assert "Saved sweep.png and sweep.json" in printed.out and "seed" not in printed.out
    assert "warning: seed = 3: FWT has collapsed" in printed.err
    assert "warning: seed = 4: FWT has collapsed" in printed.err
    assert run(["sweep", SOURCE, TARGET, "--knob", "lambda-tau", "--values", "0,1", *options]) == 0
    assert "seed 0)" in capfd.readouterr().out


def test_an_edit_of_a_picture_names_it_whole(pipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (64, 64), "red").save("dog.png")
    asked = request(steps=2).model_copy(update={"image": ImageInput.of("dog.png")})
    (result,) = pipe.edit_batch([asked])
    result.save("saved")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (again,) = pipe.edit_batch([EditRequest.read(tmp_path / "saved")])
    assert grey_levels(again.target_image, result.target_image) == 0


def test_ids_of_other_kinds(tmp_path: Path) -> None:
    prompts = {"source_prompt": SOURCE, "target_prompt": TARGET}
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps({"id": given, **prompts}) + "\n" for given in (None, None, 7, True)))
    lines = read_lines(path)
    assert [line.id for line in lines] == ["00001", "00002", "7", "00004"]
    assert lines[3].request is None and "id is True" in str(lines[3].error)


@pytest.mark.parametrize(("by", "advice"), [({"normalise": "softmax"}, "; try normalise='sum'"), ({}, None)])
def test_a_warning_advises_what_is_not_so_yet(pipe, by: dict[str, str], advice: str | None) -> None:
    settings = {"normalise": "sum", "threshold_mode": "relative", "centre": True, **by}
    context = make_context(complete(request(), pipe.model), pipe.model, Caches.of(pipe.model.runner))
    flat = torch.full((context.alignment.num_tokens,), 0.5)
    (warning,) = collapse_warnings(context.alignment, flat, None, settings)
    assert warning.endswith(advice or "same steps")
