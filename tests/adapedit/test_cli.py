"""The command line: what it writes, what it prints and where, and how it fails."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from adapedit import AdapEditPipeline
from adapedit.cli.main import main, run
from adapedit.methods import METHODS
from adapedit.model import EditModel
from adapedit.result import EditResult
from tests.helpers.edits import LONGER, SOURCE, TARGET

EDIT = ["edit", SOURCE, TARGET, "--steps", "3"]


@pytest.fixture(autouse=True)
def loaded(pipe, tiny_folder, tmp_path, monkeypatch) -> None:
    """The tiny model in place of any, and a folder to write in."""
    monkeypatch.setattr("adapedit.checkpoints.BUILTIN", tiny_folder)
    monkeypatch.setattr(AdapEditPipeline, "from_pretrained", lambda *args, **kwargs: pipe)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


def names(folder: str | Path) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_edit_writes_four_files_and_says_where(capsys):
    assert run([*EDIT, "--out", "a/b"]) == 0
    out, err = capsys.readouterr()
    assert names("a/b") == ["edit.json", "maps.png", "source.png", "target.png"] and names("a") == ["b"]
    assert "replaces standing" in out and "Saved source.png, target.png, maps.png and edit.json in a/b" in out
    assert err == ""


def test_flags_and_set_are_knobs(capsys):
    flags = (
        "--lambda-tau 0.5 --lambda-s 0.9 --lambda-spatial 0.8 --alpha-tau 0.2 --two-pass --no-dps --no-mask"
    )
    assert (
        run([*EDIT, *flags.split(), "--seed", "3", "--guidance", "2", "--set", "centre=false", "--json"]) == 0
    )
    request = json.loads(capsys.readouterr().out)["request"]
    assert (request["seed"], request["guidance_scale"], request["num_inference_steps"]) == (3, 2.0, 3)
    wanted = {
        "lambda_tau": 0.5,
        "lambda_s": 0.9,
        "lambda_spatial": 0.8,
        "alpha_tau": 0.2,
        "two_pass": True,
    }
    wanted |= {"dps": False, "mask": False, "fwt": True, "centre": False}
    assert request["method"] == {**request["method"], **wanted}


def test_knobs_of_words(capsys):
    words = ["--local-blend", "dog", "--local-blend", "sitting", "--set", "equalizer=red:2,sitting:0.5"]
    assert run([*EDIT, "--method", "prompt-to-prompt", *words, "--json"]) == 0
    method = json.loads(capsys.readouterr().out)["request"]["method"]
    assert method["local_blend"] == ["dog", "sitting"]
    assert [(item["word"], item["value"]) for item in method["equalizer"]] == [("red", 2.0), ("sitting", 0.5)]


@pytest.mark.parametrize(
    "arguments",
    [
        [*EDIT],
        ["words", SOURCE, LONGER, "--steps", "2"],
        ["sweep", SOURCE, TARGET, "--knob", "lambda-tau", "--values", "0.2,1", "--steps", "2"],
        ["compare", SOURCE, TARGET, "--steps", "2"],
    ],
)
def test_json_is_one_object_on_stdout_and_nothing_else(arguments, capfd):
    assert run([*arguments, "--json"]) == 0
    out, err = capfd.readouterr()
    assert isinstance(json.loads(out), dict)
    assert err == ""


def test_sweep_puts_one_knob_on_one_sheet(capsys):
    assert (
        run(["sweep", SOURCE, TARGET, "--steps", "2", "--knob", "--lambda-tau", "--values", "0.2, 0.5,1"])
        == 0
    )
    assert names("out/sweep") == ["sweep.json", "sweep.png"]
    written = json.loads(Path("out/sweep/sweep.json").read_text())
    assert written["knob"] == "lambda_tau" and written["values"] == ["0.2", "0.5", "1"]
    assert [edit["request"]["method"]["lambda_tau"] for edit in written["edits"]] == [0.2, 0.5, 1.0]
    assert Image.open("out/sweep/sweep.png").width > 4 * 192


@pytest.mark.parametrize(("knob", "field"), [("seed", "seed"), ("steps", "num_inference_steps")])
def test_sweep_over_what_is_no_knob_of_a_method(knob, field, capsys):
    assert run(["sweep", SOURCE, TARGET, "--steps", "2", "--knob", knob, "--values", "1,3", "--json"]) == 0
    assert [edit["request"][field] for edit in json.loads(capsys.readouterr().out)["edits"]] == [1, 3]


def test_compare_runs_every_method_or_those_named(capsys):
    assert run(["compare", SOURCE, TARGET, "--steps", "2", "--set", "adapedit.lambda_tau=0.3", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    # InstructPix2Pix wants a model of its own.
    assert written["methods"][0] == "plain" and set(written["methods"]) == {*METHODS} - {"instruct-pix2pix"}
    assert written["methods"][-1] == "adapedit"
    assert written["edits"][-1]["request"]["method"]["lambda_tau"] == 0.3
    assert names("out/compare") == ["compare.json", "compare.png"]
    some = ["--methods", "plain,prompt-to-prompt", "--set", "self_replace_steps=0.1"]
    assert run(["compare", SOURCE, TARGET, "--steps", "2", *some, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["edits"][1]["request"]["method"]["self_replace_steps"] == 0.1


def test_words_alone_reads_the_tokenizer_only(tiny_folder, capsys, monkeypatch):
    monkeypatch.setattr(
        AdapEditPipeline, "from_pretrained", lambda *args, **kwargs: pytest.fail("model loaded")
    )
    assert run(["words", LONGER, TARGET, "--no-run", "--model", str(tiny_folder)]) == 0
    out = capsys.readouterr().out
    assert "small" in out and "deleted, was of 'dog'" in out and "τ" not in out
    assert run(["words", LONGER, TARGET, "--no-run", "--model", str(tiny_folder), "--json"]) == 0
    words = json.loads(capsys.readouterr().out)["source_words"]
    assert [word["kind"] for word in words].count("deleted") == 1


def test_words_shows_relation_and_steps(capsys):
    assert run(["words", SOURCE, TARGET, "--steps", "2"]) == 0
    out = capsys.readouterr().out
    assert "Λ" in out and "τ" in out and "█" in out
    assert names(".") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["edit", "", TARGET], "source_prompt is '': it is empty"),
        ([*EDIT, "--lambda-tau", "nan"], "lambda_tau is nan"),
        ([*EDIT, "--lambda-s", "-1"], "lambda_s is -1.0"),
        (["edit", SOURCE, TARGET, "--steps", "0"], "num_inference_steps is 0"),
        ([*EDIT, "--steps", "many"], "Invalid value for '--steps'"),
        ([*EDIT, "--nonsense", "3"], "No such option"),
        ([*EDIT, "--dtype", "int8"], "Invalid value for '--dtype'"),
        (["edit", SOURCE], "Missing argument 'target'"),
        (["paint"], "No such command 'paint'"),
        ([*EDIT, "--method", "p2p"], "there is no method 'p2p'"),
        ([*EDIT, "--method", "plain", "--lambda-tau", "1"], "plain has no knob 'lambda_tau'"),
        ([*EDIT, "--set", "lambda_tau"], "is no assignment; write it as --set KNOB=VALUE"),
        ([*EDIT, "--set", "nonsense=1"], "adapedit has no knob 'nonsense'; its knobs: lambda_tau"),
        ([*EDIT, "--set", "equalizer=red:2"], "adapedit has no knob 'equalizer'"),
        (
            [*EDIT, "--method", "prompt-to-prompt", "--set", "equalizer=red"],
            "equalizer is 'red'; write it as WORD:VALUE",
        ),
        (["sweep", SOURCE, TARGET, "--knob", "nonsense", "--values", "1"], "no knob 'nonsense'"),
        (["sweep", SOURCE, TARGET, "--knob", "lambda-tau", "--values", ","], "--values is empty"),
        (["sweep", SOURCE, TARGET, "--knob", "lambda-tau", "--values", "1,x"], "lambda_tau is 'x'"),
        (["sweep", SOURCE, TARGET, "--knob", "seed", "--values", "1.5"], "seed is '1.5'"),
        (["compare", SOURCE, TARGET, "--methods", "plain,p2p"], "there is no method 'p2p'"),
        (["compare", SOURCE, TARGET, "--set", "nonsense=1"], "has a knob 'nonsense'"),
    ],
)
def test_mistakes_are_one_line_on_stderr_and_exit_code_2(arguments, message, capfd, monkeypatch):
    monkeypatch.setattr(
        AdapEditPipeline, "from_pretrained", lambda *args, **kwargs: pytest.fail("model loaded")
    )
    assert run(arguments) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("adapedit: ") and message in err and err.count("\n") == 1


@pytest.mark.parametrize("command", ["edit", "sweep", "compare"])
def test_the_output_folder_is_checked_before_the_model_is_loaded(command, capfd, monkeypatch):
    monkeypatch.setattr(
        AdapEditPipeline, "from_pretrained", lambda *args, **kwargs: pytest.fail("model loaded")
    )
    Path("file").write_text("in the way")
    more = ["--knob", "seed", "--values", "1"] if command == "sweep" else []
    for out in ("file", "file/out", "/proc/out"):
        assert run([command, SOURCE, TARGET, *more, "--out", out]) == 2
        err = capfd.readouterr().err
        assert err.startswith(f"adapedit: can't write to {out} (") and err.count("\n") == 1
    assert names(".") == ["file"]


def test_a_disk_that_fills_up_is_one_line(capfd, monkeypatch):
    def full(self: object, *args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert run([*EDIT]) == 2
    assert "(No space left on device); free some space" in capfd.readouterr().err
    assert names(".") == []


def test_ctrl_c_ends_with_130_and_leaves_nothing(pipe, capfd, monkeypatch):
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    for owner, name in ((type(pipe), "edit_batch"), (EditModel, "decode"), (EditResult, "maps_sheet")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupt)
            assert run([*EDIT, "--out", "a/b"]) == 130
        assert capfd.readouterr().err == "adapedit: interrupted\n"
        assert names(".") == []


def test_a_defect_keeps_its_traceback(pipe, monkeypatch):
    monkeypatch.setattr(EditModel, "decode", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run([*EDIT])


def test_warnings_are_lines_on_stderr(capfd):
    assert run([*EDIT, "--alpha-tau", "1", "--set", "threshold_mode=absolute", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["warnings"]
    assert all(line.startswith("adapedit: warning: ") for line in err.splitlines())
    assert "DPS has collapsed" in err


def test_ctrl_c_while_the_command_line_itself_is_loaded(capfd, monkeypatch):
    class Interrupting:
        def find_spec(self, name: str, *args: object) -> None:
            if name == "adapedit.cli.bundles":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "adapedit.cli.bundles", raising=False)
    monkeypatch.delattr("adapedit.cli.bundles", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    assert run([*EDIT]) == 130
    assert capfd.readouterr().err == "adapedit: interrupted\n"


def test_letters_that_the_terminal_lacks_cost_no_result(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    with pytest.raises(SystemExit) as leaving:
        main([*EDIT])
    assert leaving.value.code == 0
    assert b"? relation" in written.getvalue() and b"Saved" in written.getvalue()


def test_brackets_in_a_folders_name_are_shown(capsys):
    assert run([*EDIT, "--out", "a[b]"]) == 0
    assert "edit.json in a[b]" in capsys.readouterr().out


def test_no_arguments_is_help_and_no_error_line(capfd):
    assert run([]) == 2
    out, err = capfd.readouterr()
    assert "Usage: adapedit" in out + err and "adapedit: " not in err


@pytest.mark.parametrize("command", ["edit", "sweep", "compare", "words"])
def test_help_has_examples(command, capsys):
    with pytest.raises(SystemExit) as leaving:
        main([command, "--help"])
    assert leaving.value.code == 0
    out = capsys.readouterr().out
    assert "Examples:" in out and f"adapedit {command}" in out


def test_help_and_version_load_nothing_heavy():
    script = (
        "import sys, adapedit, adapedit.cli\n"
        "from adapedit.cli.main import run\n"
        "assert run(['edit', '--help']) == 0 and run(['--version']) == 0\n"
        "heavy = {'torch', 'numpy', 'diffusers', 'transformers', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "adapedit 0." in done.stdout
