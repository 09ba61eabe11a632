"""A listener who is slow takes no memory, and misses no end."""

from __future__ import annotations

import asyncio

from adapedit.http.events import MAX_PREVIEWS, Mailbox, listen, sse


def told(*events: tuple[str, dict], gone: bool = False) -> list:
    async def run() -> list:
        async def left() -> bool:
            return gone

        box = Mailbox()
        for name, data in events:
            box.put(name, data)
        await asyncio.sleep(0)
        return [event async for event in listen(box, left)]

    return asyncio.run(run())


def test_of_steps_the_last_is_kept_and_of_previews_the_newest():
    steps = [("step", {"step": step}) for step in range(100)]
    previews = [("preview", {"step": step}) for step in range(10, 20)]
    found = told(*steps, *previews, ("completed", {}))
    assert [event for event in found if event[0] == "step"] == [("step", {"step": 99})]
    shown = [data["step"] for name, data in found if name == "preview"]
    assert shown == list(range(20 - MAX_PREVIEWS, 20)) and found[-1] == ("completed", {})


def test_nothing_is_told_to_whoever_is_gone():
    assert told(("step", {"step": 1}), gone=True) == []


def test_events_are_written_as_the_standard_has_them():
    assert sse(("step", {"text": "a\nb"})) == 'event: step\ndata: {"text":"a\\nb"}\n\n'
    assert sse(None).startswith(":") and sse(None).endswith("\n\n")
