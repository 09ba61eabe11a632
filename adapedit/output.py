"""Output folders: checked before any work, and either written whole or left as they were."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from pathlib import Path

from adapedit_kernels.errors import AdapEditError

__all__ = ["OutputError", "OutputFolder", "check_output"]

LEAST_SPACE = 32 * 2**20
"""Bytes that must be free before work begins; an edit at 512 x 512 pixels writes about 2 MB."""


class OutputError(AdapEditError):
    """An output folder that can't be written, or a disk that is full."""


def check_output(folder: str | Path) -> None:
    """Raise `OutputError` where `folder` could not be written. Changes nothing, and makes no folder."""
    folder = Path(folder)
    try:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is a file")
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{there} is a file")
        # Asking is not enough: root may do all that permissions forbid, and a file system may be read-only.
        trial = there / _part_name(folder)
        trial.mkdir()
        trial.rmdir()
        if shutil.disk_usage(there).free < LEAST_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise _unwritable(folder, error) from error


class OutputFolder:
    """Gives a hidden folder to write into; what is in it takes its place in `folder` when the block ends well.

    A new `folder` appears at once, with all its files. In one that was there earlier files of the same names are
    replaced, each whole: the descriptions (.json) are taken away first and put in last, so that where a description
    stands the pictures beside it are its own. Where the block fails or is interrupted `folder` is left as it was, or
    is not made. Raises `OutputError`, on entry where nothing can be written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def __enter__(self) -> Path:
        check_output(self.folder)
        try:
            # Inside a folder that is there already: it may be a mount point, or its parent closed to us.
            parent = self.folder if self.folder.exists() else self.folder.absolute().parent
            self._made = _make(parent)
            self.part = parent / _part_name(self.folder)
            self.part.mkdir()
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        return self.part

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        done = False
        try:
            if kind is None:
                self._publish()
                done = True
        except OSError as problem:
            raise _unwritable(self.folder, problem) from problem
        finally:
            shutil.rmtree(self.part, ignore_errors=True)
            if not done:
                for path in reversed(self._made):
                    _remove_if_empty(path)
        if isinstance(error, OSError):
            raise _unwritable(self.folder, error) from error

    def _publish(self) -> None:
        if not self.folder.exists():
            os.rename(self.part, self.folder)
            return
        paths = sorted(self.part.iterdir(), key=lambda path: (path.suffix == ".json", path.name))
        for path in paths:
            if (self.folder / path.name).is_dir():
                raise IsADirectoryError(errno.EISDIR, f"{path.name} in it is a folder")
        for path in paths:
            if path.suffix == ".json":
                (self.folder / path.name).unlink(missing_ok=True)
        for path in paths:
            os.replace(path, self.folder / path.name)


def _part_name(folder: Path) -> str:
    return f".{folder.absolute().name}.{secrets.token_hex(4)}.part"


def _make(folder: Path) -> list[Path]:
    """Make a folder with its parents; those that were made, the outermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _remove_if_empty(path: Path) -> None:
    try:
        path.rmdir()
    except OSError:
        return


def _unwritable(folder: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    mend = "free some space or " if error.errno == errno.ENOSPC else ""
    return OutputError(f"can't write to {folder} ({reason}); {mend}choose another output folder")
