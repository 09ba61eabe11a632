"""Layouts kept for the edits that stay together from step to step."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from adapedit_engine.layout import Layout
from adapedit_engine.rows import RowTables
from adapedit_engine.runners import Runner

KEPT = 8


class Layouts:
    """The last few layouts of a runner, found again by the tables that they join."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        # A layout holds its tables, so their ids stay theirs.
        self._known: OrderedDict[tuple[int, ...], Layout] = OrderedDict()

    def of(self, tables: Sequence[RowTables]) -> Layout:
        """The layout of these tables in this order."""
        key = tuple(id(table) for table in tables)
        if key not in self._known:
            # The old ones hold prompts of edits that have left: most are of no use once the batch changes.
            while len(self._known) >= KEPT:
                self._known.popitem(last=False)
            self._known[key] = Layout.of(tables, self._runner)
        self._known.move_to_end(key)
        return self._known[key]

    def clear(self) -> None:
        """Forget all of them."""
        self._known.clear()
