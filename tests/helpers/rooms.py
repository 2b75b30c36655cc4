"""The rooms of the package, in their order, and the imports between its modules as written."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "jaxasr_interp"
BASE = ("display", "errors", "numerics", "pytree", "_version")
"""Modules of the package root that everything may import."""
ROOMS = (
    "speech",
    "model",
    "runtime",
    "checkpoint",
    "evaluation",
    "interventions",
    "generation",
    "patching",
    "verification",
    "ablation",
    "pathways",
    "lens",
    "extraction",
    "similarity",
    "probes",
    "report",
    "studies",
    "cli",
)
"""Each imports only those before it; some of them are not built yet."""
ROOT_MODULES = {*BASE, "__init__", "__main__"}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, packages by the name of their folder."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """The modules that a file imports anywhere, also inside functions and for types alone."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if name in known or node.module in known:
                    yield name if name in known else node.module


def read_imports() -> dict[str, set[str]]:
    """The modules that each module of the package imports."""
    known = modules()
    return {name: set(imports_of(path, known)) - {name} for name, path in known.items()}


def room_of(module: str) -> str | None:
    """The room that a module lies in, or its own name in the package root; `None` for the root."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def circles(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for other in imports.get(waiting.pop(), ()):
                if other not in seen:
                    seen.add(other)
                    waiting.append(other)
        return seen

    reach = {module: reached(module) for module in imports}
    groups = {
        tuple(sorted(other for other in reach[module] if module in reach[other]))
        for module in imports
        if module in reach[module]
    }
    return [list(group) for group in sorted(groups)]
