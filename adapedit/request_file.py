"""A file of requests to a folder of results, begun again wherever it was interrupted."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

from adapedit.edit import complete
from adapedit.model import EditModel
from adapedit.request import PICTURES, EditRequest, same_request
from adapedit.result import EditResult
from adapedit.server import EditServer, Finished
from adapedit_kernels.errors import AdapEditError

IDS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
FAILURES = re.compile(r"failures(-\d+-of-\d+)?\.jsonl")
"""Files beside the folders: of the whole batch, and of any shard of it."""


@dataclass(frozen=True, kw_only=True)
class BatchLine:
    """A line of the file. id: of its folder; error: where it is no request."""

    number: int
    id: str
    request: EditRequest | None = None
    error: str | None = None


@dataclass(kw_only=True)
class BatchReport:
    """How a batch went. skipped: edits that an earlier run had finished; failures: by id, why."""

    done: int = 0
    skipped: int = 0
    failures: dict[str, str] = field(default_factory=dict)


def read_lines(path: Path, defaults: Mapping[str, Any] | None = None) -> list[BatchLine]:
    """Requests, one JSON object a line: the fields of `EditRequest`, and `id` for the folder (by default the line's
    number).

    `method` is an object with `name` and knobs, or a name alone. defaults: fields of every line that lacks them. A
    line that can't be read becomes a failure of its own. Raises `AdapEditError` for a file that can't be read, and
    for two lines with one id.
    """
    known = {} if defaults is None else defaults
    # Lines end where JSON's do: a string may hold U+2028 and other signs that str.splitlines takes for an end.
    texts = _text(path).split("\n")
    lines = [
        _line(number, text, known, path.parent) for number, text in enumerate(texts, start=1) if text.strip()
    ]
    if lines and all(line.request is None for line in lines):
        if texts[0].lstrip().startswith("["):
            raise AdapEditError(
                f"{path} is one JSON array; write one JSON object a line (jq -c '.[]' {path})"
            )
        if not any(text.lstrip().startswith("{") for text in texts):
            raise AdapEditError(
                f"{path} has no line that is a JSON object; give one a line, for example "
                '{"source_prompt": "a red dog", "target_prompt": "a blue dog"}'
            )
    seen: dict[str, int] = {}
    for line in lines:
        if line.id in seen:
            raise AdapEditError(
                f"{path}: lines {seen[line.id]} and {line.number} have the id {line.id!r}; give each its own"
            )
        seen[line.id] = line.number
    return lines


def shard_of(lines: Sequence[BatchLine], shard: str | None) -> list[BatchLine]:
    """Every n-th line, for `shard` "i/n" with i from 1: the shards of one file never overlap."""
    if shard is None:
        return list(lines)
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    index, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= index <= count:
        raise AdapEditError(f"shard is {shard!r}, wanted i/n with i from 1 to n, for example 1/4")
    return list(lines[index - 1 :: count])


def run_batch(
    server: EditServer,
    lines: Sequence[BatchLine],
    out: Path,
    *,
    name: str = "failures",
    callback: Callable[[BatchReport], None] | None = None,
) -> BatchReport:
    """Run what is not there yet, each edit into a folder of its own below `out`.

    A folder stands there whole or not at all, and is taken as done if its edit.json has the same request.
    Failures are written to `<name>.jsonl` as they happen; the file is removed where there are none.
    """
    report, failures = BatchReport(), out / f"{name}.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    failures.unlink(missing_ok=True)

    def failed(line: BatchLine, error: object) -> None:
        report.failures[line.id] = " ".join(str(error).split()) or type(error).__name__
        entry = {"id": line.id, "line": line.number, "error": report.failures[line.id]}
        with failures.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, allow_nan=False) + "\n")

    waiting: list[BatchLine] = []
    for line in lines:
        _remove_parts(out, line.id)
        if line.request is None:
            failed(line, line.error)
        elif is_done(out / line.id, line.request, server.model):
            report.skipped += 1
        else:
            waiting.append(line)
    if callback is not None:
        callback(report)
    with ThreadPoolExecutor(1, "adapedit-save") as writer:
        for line, saved in _saved(server, waiting, out, writer):
            try:
                saved.result()
                report.done += 1
            except Exception as error:
                failed(line, error)
            if callback is not None:
                callback(report)
    return report


def is_done(folder: Path, request: EditRequest, model: EditModel) -> bool:
    """Whether `folder` holds the result of this request on this model."""
    try:
        stored = json.loads((folder / "edit.json").read_text(encoding="utf-8"))
        return stored["model"] == model.name and same_request(stored, complete(request, model))
    except (OSError, ValueError, KeyError, TypeError, AdapEditError):
        return False


def _saved(
    server: EditServer, lines: Sequence[BatchLine], out: Path, writer: ThreadPoolExecutor
) -> Iterator[tuple[BatchLine, Future[Any]]]:
    """Lines with the future of their folder. One is written while the next edits run; no more wait in memory."""
    last: tuple[BatchLine, Future[Any]] | None = None
    for item in server.stream(line.request for line in lines if line.request is not None):
        if last is not None:
            yield last
        line = lines[item.place]
        last = line, writer.submit(_save, item, out / line.id)
    if last is not None:
        yield last


def _save(item: Finished, folder: Path) -> Path:
    if item.error is not None:
        raise item.error
    result: EditResult | None = item.result
    assert result is not None
    return result.save(folder)


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        return content.decode(encoding)
    except (OSError, UnicodeDecodeError) as error:
        raise AdapEditError(
            f"{path} can't be read ({error}); give a file in UTF-8 with one JSON object a line"
        ) from error


def _beside(image: Any, folder: Path) -> Any:
    """A picture's path, relative to the file of requests where it is there."""
    if isinstance(image, dict):
        return {**image, "file": _beside(image.get("file"), folder)}
    try:
        there = isinstance(image, str) and (folder / image).is_file()
    except (OSError, ValueError):
        there = False
    return str(folder / image) if there else image


def _line(number: int, text: str, defaults: Mapping[str, Any], folder: Path) -> BatchLine:
    name = f"{number:05d}"
    try:
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise AdapEditError("a line has to be a JSON object with source_prompt and target_prompt")
        given = fields.pop("id", None)
        if isinstance(given, bool) or not isinstance(given, (str, int, NoneType)):
            raise AdapEditError(f"id is {given!r}, wanted a string or a whole number")
        given = name if given is None else str(given)
        if not IDS.fullmatch(given):
            raise AdapEditError(f"id {given!r} is no folder name; use letters, digits, '.', '_' and '-'")
        if FAILURES.fullmatch(given):
            raise AdapEditError(
                f"id {given!r} is the name of a file that failures are written to; use another"
            )
        name = given
        for field in PICTURES:
            if fields.get(field) is not None:
                fields[field] = _beside(fields[field], folder)
        return BatchLine(number=number, id=name, request=EditRequest.make(**{**defaults, **fields}))
    except Exception as error:
        # Whatever a line is made of, a hundred thousand brackets too, the others are run.
        return BatchLine(number=number, id=name, error=f"line {number}: {error}")


def _remove_parts(out: Path, id: str) -> None:
    """What a killed run had begun to write: beside the folder, or inside one that was there already."""
    for folder in (out, out / id):
        for part in folder.glob(f".{id}.????????.part"):
            shutil.rmtree(part, ignore_errors=True)
