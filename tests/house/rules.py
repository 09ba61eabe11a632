"""The house rules, read from a file's syntax tree; ``test_imports`` and ``test_rules`` apply them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Room -> where its code lies. The order is that of the imports: a room may use itself and those before it.
ROOMS: dict[str, str] = {
    "adapedit_kernels": "kernels/adapedit_kernels",
    "adapedit_engine": "engine/adapedit_engine",
    "adapedit_export": "export/adapedit_export",
    "adapedit": "adapedit",
    "benchmarks": "benchmarks",
    "tests": "tests",
}

# What a room does not know of, whoever installed it.
UNKNOWN_TO: dict[str, frozenset[str]] = {
    "adapedit_kernels": frozenset({"diffusers", "transformers", "tokenizers", "PIL"}),
    "adapedit_engine": frozenset({"transformers", "tokenizers", "PIL"}),
    "adapedit": frozenset({"onnx", "onnxruntime", "tensorrt", "tensorrt_rtx_bindings", "triton"}),
}

PICKLING_MODULES = frozenset({"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"})
PICKLING_CALLS = frozenset({"torch.load", "torch.save", "pandas.read_pickle"})


def python_files(folder: str) -> list[Path]:
    """Every Python file below ``folder``, which is relative to the repository's root."""
    return sorted((ROOT / folder).rglob("*.py"))


def dotted(node: ast.expr) -> str | None:
    """``a.b.c`` of a chain of attributes, or None where the chain starts with something else than a name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else None
    return None


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of each import, those in functions and under ``TYPE_CHECKING`` among them.

    ``import_module("a.b")`` and ``__import__("a.b")`` count where the name is a literal. Relative imports
    stay in their package and are left out.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module
        elif isinstance(node, ast.Call) and node.args:
            name, first = dotted(node.func), node.args[0]
            if (
                name in {"__import__", "import_module", "importlib.import_module"}
                and isinstance(first, ast.Constant)
                and isinstance(first.value, str)
                and not first.value.startswith(".")
            ):
                yield node.lineno, first.value


def import_violations(room: str, source: str, where: str) -> list[str]:
    """One line for each import of ``source``, a file of ``room``, that points the wrong way."""
    order = list(ROOMS)
    found = []
    for line, module in imported_modules(ast.parse(source)):
        top = module.partition(".")[0]
        if top in ROOMS and order.index(top) > order.index(room):
            found.append(f"{where}:{line}: {room} imports {module}, which stands to its right")
        if top in UNKNOWN_TO.get(room, frozenset()):
            found.append(f"{where}:{line}: {room} imports {module}, which that room does not know")
    return found


def pickle_violations(source: str, where: str) -> list[str]:
    """One line for each pickle that ``source`` could read or write: reading one runs its author's code."""
    tree = ast.parse(source)
    found = [
        f"{where}:{line}: imports {module}"
        for line, module in imported_modules(tree)
        if module.partition(".")[0] in PICKLING_MODULES
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            found += [
                f"{where}:{node.lineno}: imports torch.{alias.name}"
                for alias in node.names
                if f"torch.{alias.name}" in PICKLING_CALLS
            ]
        if isinstance(node, ast.Call):
            if dotted(node.func) in PICKLING_CALLS:
                found.append(f"{where}:{node.lineno}: calls {dotted(node.func)}")
            for keyword in node.keywords:
                if keyword.arg == "allow_pickle" and not is_false(keyword.value):
                    found.append(f"{where}:{node.lineno}: passes allow_pickle")
    return found


def shell_violations(source: str, where: str) -> list[str]:
    """One line for each command of ``source`` that goes through a shell."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        if dotted(node.func) in {"os.system", "os.popen"}:
            found.append(f"{where}:{node.lineno}: calls {dotted(node.func)}")
        found += [
            f"{where}:{node.lineno}: passes shell"
            for keyword in node.keywords
            if keyword.arg == "shell" and not is_false(keyword.value)
        ]
    return found


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


MAX_LINES, MAX_PARAMETERS = 60, 8


def size_violations(source: str, name: str) -> list[str]:
    """Functions of more than a screen, or of more parameters than anybody keeps in mind."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        every = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        parameters = len([one for one in every if one.arg not in ("self", "cls")])
        if lines > MAX_LINES or parameters > MAX_PARAMETERS:
            found.append(f"{name}:{node.lineno}: {node.name} has {lines} lines, {parameters} parameters")
    return found


def name_violations(paths: list[Path]) -> list[str]:
    """Modules of one folder whose names differ by their number alone."""
    stems = {(path.parent, path.stem) for path in paths}
    return [
        f"{folder}/{stem}.py stands beside {stem}s.py"
        for folder, stem in stems
        if (folder, f"{stem}s") in stems
    ]
