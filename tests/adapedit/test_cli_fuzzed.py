"""Whatever is typed, the command line edits, or says in one line what is wrong and writes nothing."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapedit import AdapEditPipeline
from adapedit.cli.main import USER_ERROR, run
from tests.helpers.edits import SOURCE, TARGET

NUMBERS = (
    "0 1 -1 0.5 1.5 nan inf -inf 1e39 1e-400 1e400 007 0x10 1_0 ½ １ 99999999999999999999 true null".split()
)
TEXTS = [
    "",
    " ",
    ",",
    "=",
    "a=b",
    "ä🐶",
    "'",
    '"',
    "[]",
    "{}",
    "../x",
    "/",
    "~",
    "-",
    "--",
    "a" * 300,
    "a\nb",
    "\x1b[31m",
]
ANY = [*NUMBERS, *TEXTS, "default_=0.4,dog=0.8", "dog", "dog=2", "dog:2", "model", "0,1", "1,", "1/2", "0/0"]
KNOBS = (
    "lambda_tau lambda_s lambda_spatial alpha_tau equalizer cross_replace_steps self_replace_steps local_blend "
    "variant two_pass name start_step strength edit_type seed steps guidance"
).split()
METHODS = [
    "adapedit",
    "prompt-to-prompt",
    "masactrl",
    "sdedit",
    "plain",
    "instruct-pix2pix",
    "",
    "adapedit,adapedit",
]
OPTIONS = (
    "--seed --guidance --lambda-tau --lambda-s --lambda-spatial --alpha-tau --variant --cross-replace-steps "
    "--self-replace-steps --local-blend --approximate --fit --inversion --inversion-set --runner --device --dtype "
    "--image"
).split()
BY_COMMAND: dict[str, tuple[str, ...]] = {
    "edit": (),
    "sweep": ("--knob", "--values", "--max-rows"),
    "compare": ("--methods", "--max-rows"),
    "words": (),
}

some = st.sampled_from
set_values = st.builds("{}={}".format, some(KNOBS), some(ANY))


@st.composite
def arguments(draw: st.DrawFn) -> list[str]:
    """A command line of a pair of prompts, cheap where it is accepted."""
    command = draw(some(sorted(BY_COMMAND)))
    prompts = [draw(st.one_of(st.just(usual), st.just(usual), some(TEXTS))) for usual in (SOURCE, TARGET)]
    line = [command, *prompts, "--steps", draw(some(["1", "1", "1", "2", "0", "-1", "nan", ""]))]
    if command == "sweep":
        line += [
            "--knob",
            draw(some([*KNOBS, ""])),
            "--values",
            ",".join(draw(st.lists(some(ANY), max_size=3))),
        ]
    if command == "compare":
        line += ["--methods", ",".join(draw(st.lists(some(METHODS), max_size=2)))]
    elif draw(st.booleans()):
        line += ["--method", draw(some(METHODS))]
    for _ in range(draw(st.integers(0, 3))):
        line += draw(
            st.one_of(
                st.tuples(some([*OPTIONS, *BY_COMMAND[command]]), some(ANY)),
                st.tuples(st.just("--set"), set_values),
            )
        )
    return line


@pytest.fixture
def tiny(pipe: AdapEditPipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the commands run: with a tiny model in the place of any that is named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("adapedit.cli.show.load_pipeline", lambda runtime: pipe)
    return tmp_path


def typed(line: list[str], folder: Path) -> None:
    """Run a command line: 0, or 2 with one line of stderr and nothing written."""
    out = folder / "out"
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = run([*line, "--out", str(out)] if line[0] != "words" else line)
    said = stderr.getvalue().splitlines()
    assert code in (0, USER_ERROR), (line, code)
    if code:
        assert said and said[-1].startswith("adapedit: ") and "Traceback" not in stderr.getvalue(), (
            line,
            said,
        )
        assert not out.exists(), (line, list(out.iterdir()))
    for path in sorted(out.rglob("*"), reverse=True) if out.exists() else ():
        path.unlink() if path.is_file() else path.rmdir()
    if out.exists():
        out.rmdir()


calm: dict[str, Any] = {"derandomize": True, "database": None, "deadline": None}
calm["suppress_health_check"] = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=100, **calm)
@given(arguments())
def test_command_lines_fuzzed(tiny: Path, line: list[str]) -> None:
    typed(line, tiny)


@pytest.mark.slow
@settings(max_examples=1500, **calm)
@given(arguments())
def test_many_command_lines_fuzzed(tiny: Path, line: list[str]) -> None:
    typed(line, tiny)
