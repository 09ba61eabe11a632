"""The C library is asked to keep freed memory, in a process of its own: the setting is for good."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from adapedit_engine.host_memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(16 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
before = faults()
changed = keep_freed_memory()
faults()
print(changed, before, faults())
"""


def run(**environment: str) -> list[str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**known, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_what_was_freed_is_not_fetched_from_the_system_again():
    changed, before, after = run()
    if changed == "False" or int(before) < 100_000:
        pytest.skip("this C library can't be asked to, or the system has pages of more than 4 KiB")
    assert int(after) < 1000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_settings_from_the_environment_hold():
    changed, before, after = run(MALLOC_ARENA_MAX="4")
    assert changed == "False"
    assert int(after) > 0.9 * int(before)
