"""Entry point: what goes wrong becomes one line on stderr and an exit code."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

USER_ERROR, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0, 2 for an input that can't be used, 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        # A pipe on Windows, or an odd locale, may lack the Greek letters: a mark in their place, not an error.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """The same, returning the exit code."""
    try:
        from adapedit.cli.evaluate import app  # takes long enough to be interrupted

        with warnings.catch_warnings():
            # Of libraries: of no use to somebody at a terminal. The edits' own are printed by the commands.
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            code = app(
                args=None if arguments is None else list(arguments),
                prog_name="adapedit",
                standalone_mode=False,
            )
        code = code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; what the interpreter still wants to flush goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        message = _message(error)
        if message is None:
            raise
        if type(error).__name__ != "NoArgsIsHelpError":  # the help that it has printed says all
            print(f"adapedit: {message}", file=sys.stderr)
        return USER_ERROR
    if code == INTERRUPTED:
        print("adapedit: interrupted", file=sys.stderr)
    return code


def _message(error: Exception) -> str | None:
    """One line for an error that the user can mend; None for one that is a defect."""
    errors = sys.modules.get("adapedit_kernels.errors")  # not loaded: none of its errors can have been raised
    if errors is not None and isinstance(error, errors.AdapEditError):
        text = str(error)
    elif hasattr(
        error, "format_message"
    ):  # of the command line itself: an unknown option, a missing argument
        command = getattr(getattr(error, "ctx", None), "command_path", "adapedit")
        text = f"{error.format_message()} Try '{command} --help'."
    elif type(error).__name__ == "OutOfMemoryError":
        text = f"not enough memory ({str(error).splitlines()[0]}); lower --max-rows or use --dtype float16"
    else:
        return None
    return " ".join(text.split())
