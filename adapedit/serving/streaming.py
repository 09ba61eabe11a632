"""Many requests through a server: their edits as they finish."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait

from adapedit.progress import Progress
from adapedit.request import EditRequest, check_callback, check_count, check_requests
from adapedit.result import EditResult
from adapedit.serving.outcomes import Finished, finished


def streamed(
    requests: Iterable[EditRequest],
    submit: Callable[[EditRequest], Future[EditResult]],
    *,
    ahead: int,
    callback: Progress | None,
) -> Iterator[Finished]:
    """See `EditServer.stream`. submit: a request that it raises for, whatever it raises, is one that failed.

    Raises `AdapEditError` at once for arguments of other kinds.
    """
    check_requests(requests)
    check_count("ahead", ahead)
    check_callback(callback)
    return _streamed(requests, submit, ahead, callback)


def _streamed(
    requests: Iterable[EditRequest],
    submit: Callable[[EditRequest], Future[EditResult]],
    ahead: int,
    callback: Progress | None,
) -> Iterator[Finished]:
    source, more, taken, done = iter(enumerate(requests)), True, 0, 0
    flying: dict[Future[EditResult], tuple[int, EditRequest]] = {}
    try:
        while more or flying:
            while more and len(flying) < ahead:
                try:
                    place, request = next(source)
                except StopIteration:
                    more = False
                    break
                taken += 1
                try:
                    flying[submit(request)] = (place, request)
                    continue
                except Exception as error:
                    refused = Finished(place=place, request=request, error=error)
                done += 1
                yield refused
            if not flying:
                continue
            ended, _ = wait(flying, return_when=FIRST_COMPLETED)
            for future in sorted(ended, key=lambda future: flying[future][0]):
                place, request = flying.pop(future)
                done += 1
                if callback is not None:
                    callback(done, taken)
                yield finished(place, request, future)
    finally:
        for future in flying:
            future.cancel()
