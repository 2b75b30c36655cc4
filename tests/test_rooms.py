"""The package's rooms: what imports what, how large modules and signatures are, and the folders."""

import ast
import collections

import pytest

from helpers.rooms import (
    BASE,
    PACKAGE,
    ROOMS,
    ROOT,
    ROOT_MODULES,
    circles,
    modules,
    read_imports,
    room_of,
)

MOST_LINES = 300
MOST_PARAMETERS = 8
MOST_OPTIONS = 20


def test_no_import_runs_in_a_circle():
    assert circles(read_imports()) == []


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_no_import_runs_against_the_order_of_the_rooms():
    order = dict.fromkeys(BASE, -1) | {room: i for i, room in enumerate(ROOMS)}
    upward = [
        f"{module} imports {other}"
        for module, others in read_imports().items()
        for other in others
        if room_of(module) in order
        and room_of(other) in order
        and order[room_of(other)] > order[room_of(module)]
    ]
    assert upward == []


def test_the_package_root_holds_rooms_and_what_all_share():
    entries = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()} - {"__pycache__"}
    assert entries <= {*ROOMS, *ROOT_MODULES, "kernels", "py.typed", "data"}


def test_kernels_depend_on_nothing_but_what_all_share():
    for path in (ROOT / "kernels").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxasr_interp"):
                assert node.module.split(".")[1] in (*BASE, "kernels"), f"{path}: {node.module}"


def test_modules_are_short():
    long = {
        name: lines
        for name, path in modules().items()
        if (lines := len(path.read_text("utf-8").splitlines())) > MOST_LINES
    }
    assert long == {}


def functions():
    """Every function of the package with the names of its parameters, `self` and `cls` left out."""
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                names = [one.arg for one in given if one.arg not in ("self", "cls")]
                yield module, node.name, names


def is_command(module, function):
    """Whether it is a command of the command line, whose parameters are options."""
    from jaxasr_interp.cli.app import app

    groups = [app, *(group.typer_instance for group in app.registered_groups)]
    commands = {one.callback for group in groups for one in group.registered_commands}
    return any(one.__module__ == module and one.__name__ == function for one in commands)


def test_functions_take_few_parameters():
    many = {
        f"{module}.{name}": len(names)
        for module, name, names in functions()
        if len(names) > MOST_PARAMETERS and not is_command(module, name)
    }
    assert many == {}


@pytest.mark.parametrize("command", ["patch", "ablate"])
def test_sweeping_commands_have_few_options(command):
    (names,) = [
        names
        for module, name, names in functions()
        if name == command and module.startswith("jaxasr_interp.cli.")
    ]
    assert len(names) <= MOST_OPTIONS


def test_no_two_classes_have_one_name():
    found = collections.Counter(
        node.name
        for path in [*modules().values(), *(ROOT / "kernels").rglob("*.py")]
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, times in found.items() if times > 1] == []
