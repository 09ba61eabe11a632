"""What the C library does with the memory of tensors that are freed: keep it for the next ones, or give it back.

glibc gives large blocks back to the system, and the system fills them with zeros, page by page, when they are asked
for anew. Calls of 24 rows of the built-in model in a thread of their own did so 20,000 times each; a fortieth of the
processor's time went there, and 32 rows were slower than 24. Edits one by one are 6 % faster without.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

ARENA_MAX, MMAP_THRESHOLD, TRIM_THRESHOLD = -8, -3, -1
"""Names of `mallopt`'s settings, from glibc's `malloc.h`."""

KEPT_BYTES = 2**30
"""Blocks up to this size come from the heap, and as much of it may lie free at its end."""


@cache
def keep_freed_memory() -> bool:
    """Let the process keep what it frees, for all threads in one place; `malloc_trim` still gives it back.

    For the life of the process, and for all of it: for servers and for the command line, not for a library's user who
    has other uses for the memory; of those each may call it. Where the environment says anything of the matter
    (`MALLOC_…` or `GLIBC_TUNABLES`), that holds, and nothing is changed.
    Returns whether anything was.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    set_option = None if os.name == "nt" else getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    # An arena for each thread would hold memory of its own, in pieces of 64 MiB that are given back whole.
    wanted = ((ARENA_MAX, 1), (MMAP_THRESHOLD, KEPT_BYTES), (TRIM_THRESHOLD, KEPT_BYTES))
    answers = [set_option(option, value) for option, value in wanted]  # all, whatever the first says
    return all(answer == 1 for answer in answers)
