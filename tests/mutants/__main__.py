"""Change one thing of a module at a time, at random: the tests of the module must notice.

    python -m tests.mutants                    600 mutants drawn by a seed, about an hour; goes on where it stopped
    python -m tests.mutants schedule plan      of modules whose path holds one of these words
    python -m tests.mutants --show             only what was found: the share killed, and who survived

cosmic-ray says what can be changed and changes it. Its own executor starts Python anew for every mutant, seconds of
imports each. Here a process collects the tests once, and a child of it for each mutant puts the changed function in
the place of the right one; of what is no function (a constant, a default) a child imports the changed module. Nothing
in the tree is changed. Messages, annotations and `__all__` are left alone: no test should hold them.

`survivors.jsonl` lists the changes that no test notices, each with the reason why none has to.
Exits with 1 where fewer than 0.85 are killed, or where one survives that is not listed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import gc
import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import _pytest.main
import pytest

ROOT = Path(__file__).parents[2]
SURVIVORS = Path(__file__).parent / "survivors.jsonl"
RESULTS = ROOT / "out" / "mutants.jsonl"
SEED, DRAWN, WANTED = 26, 600, 0.85
BYTES = 12 << 30
OURS = ("adapedit", "adapedit_kernels", "adapedit_engine", "adapedit_export", "benchmarks", "tests")
LIBRARIES = "torch numpy pydantic hypothesis safetensors.torch PIL.Image diffusers transformers tokenizers"
LEFT_OUT = ("core/NoOp", "core/VariableReplacer", "core/VariableInserter")

ENGINE = "engine/adapedit_engine"
GUIDED = "kernels/adapedit_kernels/guided_step"
STEPS = "tests/engine/test_step.py tests/engine/test_batch.py"
MODULES = {
    f"{ENGINE}/memory.py": "tests/engine/test_memory.py",
    f"{ENGINE}/manifest.py": "tests/engine/test_manifest.py tests/engine/test_bundle.py",
    f"{GUIDED}/__init__.py": "tests/kernels/test_guided_step.py",
    f"{GUIDED}/reference.py": "tests/kernels/test_guided_step.py",
    f"{GUIDED}/triton.py": "tests/kernels/interpreted/check_guided_step.py",
    "adapedit/prompts/alignment.py": "tests/adapedit/prompts/test_alignment.py",
    f"{ENGINE}/schedule.py": "tests/engine/test_schedule.py",
    f"{ENGINE}/step.py": STEPS,
    f"{ENGINE}/batch.py": STEPS,
    f"{ENGINE}/plan.py": f"tests/engine/test_plan.py {STEPS}",
}
"""What is changed, and the tests that should notice, those first that are quick."""


class Mutant(NamedTuple):
    """file: from the root. first, last: the lines that are changed, from 1. old, new: what they say."""

    file: str
    first: int
    last: int
    old: str
    new: str

    @property
    def name(self) -> str:
        return f"{self.file}:{self.first}: {_shown(self.old)} -> {_shown(self.new)}"

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is known by when lines move."""
        return self.file, _shown(self.old), _shown(self.new)

    @property
    def text(self) -> str:
        """The changed file."""
        lines = (ROOT / self.file).read_text(encoding="utf-8").splitlines()
        return "\n".join([*lines[: self.first - 1], *self.new.splitlines(), *lines[self.last :], ""])


def _shown(text: str) -> str:
    return " / ".join(line.strip() for line in text.splitlines())


def draw() -> list[Mutant]:
    """Some changes of all files that a test might notice, the same for the same code; kept, for it takes a minute."""
    content = hashlib.sha256(f"{SEED} {DRAWN}".encode())
    for file in MODULES:
        content.update((ROOT / file).read_bytes())
    kept = RESULTS.with_name(f"mutants-{content.hexdigest()[:16]}.json")
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(_draw()), encoding="utf-8")
    return [Mutant(*values) for values in json.loads(kept.read_text(encoding="utf-8"))]


def _draw() -> list[Mutant]:
    import cosmic_ray.plugins as plugins
    from cosmic_ray.ast import ast_nodes, get_ast

    places = []
    for file in MODULES:
        source = (ROOT / file).read_text(encoding="utf-8")
        tree, silent, lines = get_ast(source), _silent(source), source.splitlines()
        for name in sorted(plugins.operator_names()):
            if name in LEFT_OUT:
                continue
            operator = plugins.get_operator(name)()
            spans = [span for node in ast_nodes(tree) for span in operator.mutation_positions(node)]
            for occurrence, (start, end) in enumerate(spans):
                if not any(first <= start and end <= last for first, last in silent):
                    # By what the line says: a change of one line draws others for that line alone.
                    nth, line = spans[:occurrence].count((start, end)), lines[start[0] - 1]
                    text = f"{SEED} {file} {name} {line} {start[1]} {nth}"
                    places.append((hashlib.sha256(text.encode()).digest(), file, name, occurrence))
    drawn: dict[str, Mutant] = {}
    for _, *place in sorted(places):
        mutant = _mutant(*place)
        if mutant is not None:
            drawn[mutant.name] = mutant
        if len(drawn) == DRAWN:
            break
    return list(drawn.values())


def _mutant(file: str, operator: str, occurrence: int) -> Mutant | None:
    """A change by its place among those of an operator; None: it is no Python, or the same."""
    import cosmic_ray.plugins as plugins
    from cosmic_ray.mutating import mutate_code

    source = (ROOT / file).read_text(encoding="utf-8")
    changed = mutate_code(source, plugins.get_operator(operator)(), occurrence) or source
    try:
        same = _meaning(changed) == _meaning(source)
    except SyntaxError:
        return None
    if same:
        return None
    old, new = source.splitlines(), changed.splitlines()
    first = next(i for i, (one, other) in enumerate(zip(old, new, strict=False)) if one != other)
    behind = next(i for i, (one, other) in enumerate(zip(old[::-1], new[::-1], strict=False)) if one != other)
    last = max(len(old) - behind, first)
    return Mutant(
        file, first + 1, last, "\n".join(old[first:last]), "\n".join(new[first : last + len(new) - len(old)])
    )


@lru_cache(maxsize=len(MODULES))
def _meaning(source: str) -> str:
    return ast.dump(ast.parse(source))


def _silent(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """From where to where, line and column, a file says what no test has to notice."""
    nodes: list[Any] = []
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.AnnAssign, ast.arg)):
            nodes.append(node.annotation)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            nodes.append(node.returns)
        elif isinstance(node, (ast.Raise, ast.JoinedStr)):
            nodes.append(node)
    nodes += [node for node in tree.body if ast.unparse(node).startswith(("if TYPE_CHECKING:", "__all__ ="))]
    return [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in nodes if n is not None]


@contextlib.contextmanager
def changed_module(mutant: Mutant) -> Iterator[None]:
    """Where this is entered, whoever imports the module gets the changed one."""
    path = ROOT / mutant.file
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(parts[next(i for i, part in enumerate(parts) if part in OURS) :]).removesuffix(
        ".__init__"
    )
    folder = [str(path.parent)] if path.name == "__init__.py" else None

    class Finder:
        @staticmethod
        def find_spec(wanted: str, _path: Any = None, _target: Any = None) -> Any:
            if wanted != name:
                return None
            return importlib.util.spec_from_file_location(name, changed, submodule_search_locations=folder)

    with tempfile.TemporaryDirectory() as place:
        changed = Path(place) / path.name
        changed.write_text(mutant.text, encoding="utf-8")
        sys.meta_path.insert(0, Finder)  # type: ignore[arg-type]
        yield


def in_a_child(work: Callable[[], int], seconds: float) -> str:
    """ "survived" where it returns 0, or what ended it."""
    child = os.fork()
    if child == 0:
        code = 99
        with contextlib.suppress(BaseException):
            os.setsid()
            resource.setrlimit(resource.RLIMIT_AS, (BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
            code = work()
        os._exit(code)
    end, status = time.monotonic() + seconds, None
    while status is None and time.monotonic() < end:
        found, code = os.waitpid(child, os.WNOHANG)
        status = code if found else None
        time.sleep(0 if found else 0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what tests left running, too
    if status is None:
        os.waitpid(child, 0)
        return "time"
    code = os.waitstatus_to_exitcode(status)
    return {0: "survived", 1: "a test"}.get(code, f"exit {code}")


def run_pytest(tests: str, plugins: Sequence[object] = ()) -> int:
    if "interpreted" not in tests:
        os.environ.pop("TRITON_INTERPRET")
    words = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-W", "ignore", "--tb=short"]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = folder
        return int(pytest.main([*words, *tests.split()], plugins=list(plugins)))


class Collected:
    """In place of pytest's loop over what it has collected: one for each mutant that is inside a function."""

    def __init__(self, mutants: Sequence[Mutant], tests: str) -> None:
        self.mutants, self.tests = mutants, tests

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        def loop() -> int:
            with contextlib.suppress(session.Failed, session.Interrupted):
                _pytest.main.pytest_runtestloop(session)
            return int(session.testsfailed > 0)

        start = time.monotonic()
        if in_a_child(loop, 900) != "survived":
            raise pytest.UsageError(f"the tests do not pass unchanged: {self.tests}")
        limit = note(self.tests, "unchanged", start) * 5 + 20
        known = [one for one in gc.get_objects() if isinstance(one, FunctionType)]
        for mutant in self.mutants:
            start, functions = time.monotonic(), changed_functions(mutant, known)
            if functions:
                note(mutant.name, in_a_child(partial(exchanged, functions, loop), limit), start)
        return True


def exchanged(functions: Sequence[tuple[FunctionType, CodeType]], loop: Callable[[], int]) -> int:
    for function, code in functions:
        function.__code__ = code
    return loop()


def changed_functions(mutant: Mutant, known: Sequence[FunctionType]) -> list[tuple[FunctionType, CodeType]]:
    """Functions of which the mutant has another code; none where something else is changed, or they are not there."""
    path, found = ROOT / mutant.file, []
    if path.name == "triton.py":
        return []  # which reads functions as texts
    old = compile(path.read_text(encoding="utf-8"), path, "exec", dont_inherit=True)
    pairs = [(old, compile(mutant.text, path, "exec", dont_inherit=True))]
    while pairs:
        one, other = pairs.pop()
        if one.co_flags & inspect.CO_OPTIMIZED:
            if _said(one) != _said(other):
                place = (one.co_filename, one.co_name, one.co_firstlineno)
                those = [
                    f
                    for f in known
                    if (f.__code__.co_filename, f.__code__.co_name, f.__code__.co_firstlineno) == place
                ]
                if not those:
                    return []
                found += [(function, other) for function in those]
        elif _said(one, deep=False) != _said(other, deep=False):
            return []
        else:
            pairs += zip(_inner(one), _inner(other), strict=True)
    return found


def _inner(code: CodeType) -> list[CodeType]:
    return [one for one in code.co_consts if isinstance(one, CodeType)]


def _said(code: CodeType, deep: bool = True) -> Any:
    """What a code does, wherever it stands. deep: those inside of it, too."""
    consts = [repr(one) for one in code.co_consts if not isinstance(one, CodeType)]
    own = (code.co_code, consts, code.co_names, code.co_varnames, code.co_flags)
    return own, [_said(one) for one in _inner(code)] if deep else [one.co_name for one in _inner(code)]


def note(name: str, found: str, start: float) -> float:
    """Write an outcome down, and return its seconds."""
    seconds = round(time.monotonic() - start, 1)
    with open(RESULTS, "a", encoding="utf-8") as file:
        file.write(json.dumps({"name": name, "outcome": found, "seconds": seconds}) + "\n")
    return seconds


def run(drawn: Sequence[Mutant]) -> None:
    """Run those of which there is no result yet."""
    RESULTS.parent.mkdir(exist_ok=True)
    os.environ["TRITON_INTERPRET"] = "1"  # asked for when Triton is imported
    for name in LIBRARIES.split():
        importlib.import_module(name)

    def waiting(tests: str) -> list[Mutant]:
        return [m for m in drawn if MODULES[m.file] == tests and m.name not in results()]

    groups = dict.fromkeys(MODULES.values())
    for tests in filter(waiting, groups):
        plugin = Collected(waiting(tests), tests)
        if in_a_child(partial(run_pytest, tests, [plugin]), 1e9) != "survived":
            raise SystemExit(f"the tests do not pass unchanged: {tests}")
    for mutant in [m for tests in groups for m in waiting(tests)]:
        start, tests = time.monotonic(), MODULES[mutant.file]
        limit = 60 + 5 * float(results()[tests]["seconds"])
        note(mutant.name, in_a_child(partial(run_changed, mutant, tests), limit), start)


def run_changed(mutant: Mutant, tests: str) -> int:
    with changed_module(mutant):
        return run_pytest(tests)


def results() -> dict[str, dict[str, Any]]:
    """Lines by name; the last one counts."""
    if not RESULTS.exists():
        return {}
    lines = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    return {line["name"]: line for line in lines}


def report(drawn: Sequence[Mutant]) -> int:
    """The table of what was found; 1 where it is not good enough."""
    found = results()
    listed = [json.loads(line) for line in SURVIVORS.read_text(encoding="utf-8").splitlines()]
    reasons = {(line["file"], line["old"], line["new"]): line["reason"] for line in listed}
    done = [mutant for mutant in drawn if mutant.name in found]
    survived = [mutant for mutant in done if found[mutant.name]["outcome"] == "survived"]
    by_file, lost = Counter(mutant.file for mutant in done), Counter(mutant.file for mutant in survived)
    for file, count in by_file.items():
        print(f"{count - lost[file]:4} of {count:4} killed in {file}")
    for mutant in survived:
        print(f"SURVIVED {mutant.name}\n         {reasons.get(mutant.key, 'no reason is listed')}")
    share = 1 - len(survived) / max(len(done), 1)
    print(f"{len(done) - len(survived)} of {len(done)} killed, {share:.3f}; wanted {WANTED}")
    return int(share < WANTED or any(mutant.key not in reasons for mutant in survived))


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("modules", nargs="*", help="words that a module's path holds")
    parser.add_argument("--show", action="store_true", help="run nothing")
    given = parser.parse_args(words)
    chosen = [m for m in draw() if not given.modules or any(word in m.file for word in given.modules)]
    if not given.show:
        run(sorted(chosen, key=lambda mutant: (mutant.file, mutant.first)))
    return report(chosen)


if __name__ == "__main__":
    sys.exit(main())
