"""Entry point: the commands, and what goes wrong as one line on stderr and an exit code."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

USER_ERROR, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0, 2 for an input that can't be used, 130 after Ctrl-C.

    1 where some edits of a batch failed, a check did not pass, or whoever read the output has gone.
    """
    for stream in (sys.stdout, sys.stderr):
        # A pipe on Windows, or an odd locale, may lack the Greek letters: a mark in their place, not an error.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """The same, returning the exit code."""
    pressed: list[int] = []

    def interrupt(number: int, _: FrameType | None) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    with _handling(signal.SIGINT, interrupt):
        try:
            return _run(arguments)
        except Exception:
            if not pressed:
                raise
    # A library that was interrupted while it was imported may swallow that, and fail of something else.
    return _interrupted()


def _run(arguments: Sequence[str] | None) -> int:
    try:
        app = _app()  # takes long enough to be interrupted
        with warnings.catch_warnings():
            # Of libraries: of no use to somebody at a terminal. The edits' own are printed by the commands.
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            given = None if arguments is None else list(arguments)
            code = app(args=given, prog_name="adapedit", standalone_mode=False)
        code = code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return _interrupted()
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
    return _interrupted() if code == INTERRUPTED else code


def _app() -> Callable[..., object]:
    import typer

    from adapedit.cli import bundles, edits, service
    from adapedit.cli.options import builtin_words, examples, root, unfolded

    app = typer.Typer(
        name="adapedit",
        help="Change a word in a prompt, and only what it means changes in the picture.",
        epilog=examples(
            'adapedit edit "a red dog standing on the grass" "a red dog sitting on the grass"',
            "adapedit edit --help",
        )
        + f"\n\n{builtin_words()}",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    app.callback()(root)
    own = {service.serve: service.ServeCommand}
    for command, lines in {**edits.COMMANDS, **bundles.COMMANDS, **service.COMMANDS}.items():
        app.command(epilog=examples(*lines), cls=own.get(command))(unfolded(command))
    return app


def _interrupted() -> int:
    print("adapedit: interrupted", file=sys.stderr)
    return INTERRUPTED


@contextmanager
def _handling(number: int, handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """A signal's handler for the length of a block; nothing where this is not the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def _message(error: Exception) -> str | None:
    """One line for an error that the user can mend; None for one that is a defect."""
    errors = sys.modules.get("adapedit_kernels.errors")  # not loaded: none of its errors can have been raised
    if errors is not None and isinstance(error, errors.AdapEditError):
        text = str(error)
    elif hasattr(error, "format_message"):  # of the command line: an unknown option, a missing argument
        command = getattr(getattr(error, "ctx", None), "command_path", "adapedit")
        text = f"{error.format_message()} Try '{command} --help'."
    elif isinstance(error, OSError):  # a full disk, a name that is too long, a folder that is closed to us
        named = f"{error.filename}: " if error.filename else ""
        text = f"{named}{error.strerror or error}; check the path, its permissions and the space on its disk"
    elif type(error).__name__ == "OutOfMemoryError":
        text = f"not enough memory ({str(error).splitlines()[0]}); lower --max-rows or use --dtype float16"
    else:
        return None
    return " ".join(text.split())
