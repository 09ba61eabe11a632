"""Layouts kept for the edits that stay together from step to step."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from adapedit_engine.layout import Layout
from adapedit_engine.rows import RowTables
from adapedit_engine.runners import Runner

KEPT = 8


class Layouts:
    """The layouts of a runner's last calls, found again by the tables that they join.

    A layout holds a copy of its edits' prompts: at the size of Stable Diffusion v1.4 some 4 MB a row. So an edit is
    in one of them at most, which is what `scheduler.memory.plan_bytes` counts, and in none once it has left, which
    whoever runs it says by `forget`. Never more than `KEPT` are held.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        # A layout holds its tables, so their ids stay theirs.
        self._known: OrderedDict[tuple[int, ...], Layout] = OrderedDict()

    def of(self, tables: Sequence[RowTables]) -> Layout:
        """The layout of these tables in this order."""
        key = tuple(id(table) for table in tables)
        if key not in self._known:
            self.forget(tables)
            while len(self._known) >= KEPT:
                self._known.popitem(last=False)
            self._known[key] = Layout.of(tables, self._runner)
        self._known.move_to_end(key)
        return self._known[key]

    def forget(self, tables: Sequence[RowTables]) -> None:
        """Drop the layouts that any of these is in, or was before its guidance stopped."""
        gone = {id(table) for table in tables}
        for key, layout in list(self._known.items()):
            if any(id(table) in gone or id(table.late) in gone for table in layout.tables):
                del self._known[key]

    def clear(self) -> None:
        """Forget all of them."""
        self._known.clear()
