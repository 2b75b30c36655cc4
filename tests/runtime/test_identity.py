"""What is kept is gone on with by the same work alone: one changed thing at a time."""

import collections
import dataclasses
import functools
import importlib
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxasr_interp as ji
from helpers.functions import times
from jaxasr_interp.runtime import identity
from jaxasr_interp.runtime.identity import digest

SCALE = 2.0


def double(value):
    return SCALE * value


def test_a_function_is_its_code_and_what_it_reads(monkeypatch):
    known = [
        digest(one)
        for one in (
            times(2.0),
            times(3.0),
            lambda site, layer, value: value + 1,
            lambda site, layer, value: value + 2,
            lambda site, layer, value, by=2: value + by,
            lambda site, layer, value, by=3: value + by,
            lambda site, layer, value: [x + 1 for x in value],
            lambda site, layer, value: [x + 2 for x in value],
            functools.partial(times(2.0), layer=1),
            functools.partial(times(2.0), layer=2),
            jax.jit(times(2.0)),
            jnp.add,
            jnp.subtract,
            np.add,
        )
    ]
    assert len(set(known)) == len(known)
    assert digest(times(2.0)) == digest(times(2.0))
    assert digest(times(np.ones(3))) == digest(times(np.ones(3)))
    reads = lambda value: double(value)  # noqa: E731
    before = digest(reads), digest(double)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert {digest(reads), digest(double)}.isdisjoint(before)
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    assert (digest(reads), digest(double)) == before


def test_a_function_in_anothers_name_is_its_own():
    def named_like(factor):
        @functools.wraps(jnp.add)
        def mine(x):
            return factor * x

        return mine

    assert len({digest(one) for one in (jnp.add, named_like(2), named_like(3))}) == 3
    assert digest(jax.vmap(times(2.0))) == digest(jax.vmap(times(2.0)))
    assert digest(jax.vmap(times(2.0))) != digest(jax.vmap(times(3.0)))
    assert digest(jax.vmap(times(2.0))) != digest(jax.vmap(times(2.0), in_axes=1))


def test_a_function_that_calls_itself_is_known():
    def make(step):
        def countdown(n):
            return n if n <= 0 else countdown(n - step)

        return countdown

    assert digest(make(1)) == digest(make(1)) != digest(make(2))


def test_values_are_known_by_content():
    one, other = np.arange(3.0), np.arange(3.0)
    assert digest([one, one]) == digest([one, other])
    different = [1, 1.0, True, "1", b"1", None, (1,), [1], {1}, {1: 1}, np.int32(1), np.ones(1)]
    different += [np.ones((1, 1)), np.ones(1, np.float32), jnp.bfloat16(1), jax.random.key(1)]
    different += [np.array(["1"]), np.array([1], object), ji.Scale(1.0), ji.Scale(2.0), ji.Zero()]
    digests = [digest(value) for value in different]
    assert len(set(digests)) == len(digests)
    assert digest({"a": 1, "b": 2}) == digest({"a": 1, "b": 2}) != digest({"b": 2, "a": 1})


def made(source, tmp_path, monkeypatch, number=[0]):  # noqa: B006
    """A user's module of that source."""
    number[0] += 1
    name = f"users_module_{number[0]}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module(name)


@pytest.mark.parametrize(
    ("source", "change"),
    [
        ("class S:\n  K = 2\ndef f(x): return x * S.K", lambda m: setattr(m.S, "K", 3)),
        ("class S:\n  K = [2]\ndef f(x): return x * S.K[0]", lambda m: m.S.K.append(3)),
        ("C = 2\ndef f(x):\n  class K:\n    A = C\n  return K.A", lambda m: setattr(m, "C", 3)),
        ("def f(x): return x", lambda m: setattr(m.f, "k", 3)),
        ("D = {'a': 1, 'b': 2}\ndef f(x): return list(D.values())[0]", lambda m: swap(m.D)),
        (
            "import enum\nclass E(enum.Enum):\n  A = 1\ndef f(x): return E.A",
            lambda m: setattr(m.E.A, "_value_", 2),
        ),
        (
            "class P:\n  @property\n  def k(self): return 2\ndef f(x): return P().k",
            lambda m: setattr(m.P, "k", property(lambda self: 3)),
        ),
        (
            "class O:\n  class I:\n    K = 2\ndef f(x): return O.I.K",
            lambda m: setattr(m.O.I, "K", 3),
        ),
        (
            "import jax\nclass J:\n  @jax.jit\n  def g(x): return x\ndef f(x): return J.g(x)",
            lambda m: setattr(m.J, "g", jax.jit(lambda x: x + 1)),
        ),
    ],
)
def test_what_a_function_reads_is_seen(source, change, tmp_path, monkeypatch):
    module = made(source, tmp_path, monkeypatch)
    before = digest(module.f)
    assert digest(module.f) == before
    change(module)
    assert digest(module.f) != before


def swap(mapping):
    first = next(iter(mapping))
    mapping[first] = mapping.pop(first)


@pytest.mark.parametrize(
    "read",
    [
        "lambda x: helper.h(x)",
        "lambda x: (lambda m: m.h(x))(helper)",
        "lambda x: getattr(helper, 'h')(x)",
        "lambda x: [m.h(x) for m in [helper]]",
    ],
)
def test_a_users_module_is_what_is_read_of_it(read, tmp_path, monkeypatch):
    helper = made("K = 2\ndef h(x): return x * K", tmp_path, monkeypatch)
    function = eval(read, {"helper": helper})
    before = digest(function)
    helper.K = 3
    assert digest(function) != before
    helper.K = 2
    assert digest(function) == before


def test_what_is_called_alike_is_known_apart():
    assert digest(lambda *a: a) != digest(lambda a: a)
    assert digest(lambda a, /: a) != digest(lambda a: a)
    assert digest(lambda *, a: a) != digest(lambda a: a)


@pytest.mark.parametrize(
    "unseen",
    [
        lambda: globals()["SCALE"],
        lambda: open("file"),  # noqa: SIM115, PTH123
        lambda: eval("SCALE"),
        np.vectorize(lambda x: x),
        np.ma.array([1.0], mask=[True]),
        collections.Counter("ab"),
        type("Mine", (list,), {})(),
        type("Number", (float,), {})(1.0),
    ],
)
def test_what_hides_its_content_is_refused(unseen):
    with pytest.raises(ji.InputError):
        digest(unseen)


def test_the_structure_of_a_tree_is_content():
    @jax.tree_util.register_pytree_node_class
    class Node:
        def __init__(self, aux):
            self.aux = aux

        def tree_flatten(self):
            return (1.0,), self.aux

        @classmethod
        def tree_unflatten(cls, aux, children):
            return cls(aux)

    long = np.arange(5000)
    other = long.copy()
    other[2500] += 1
    assert digest(Node(long)) == digest(Node(long.copy())) != digest(Node(other))


def test_circles_of_functions_are_known_in_any_process(tmp_path):
    code = (
        "from jaxasr_interp.runtime.identity import digest\n"
        "def g(x): return h(x - 1) if x else 0\n"
        "def h(x): return g(x - 1) if x else 1\n"
        "def f(x): return g(x) + h(x) + len({'a', 'b', 'c'})\n"
        "print(digest(f), digest({'a', 'b', 'cc'}))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(3)
    }
    assert len(found) == 1


def test_a_users_class_is_its_code():
    def make(factor):
        @jax.tree_util.register_dataclass
        @dataclasses.dataclass(frozen=True)
        class Mine:
            by: float = 1.0

            def __call__(self, site, layer, value):
                return factor * self.by * value

        return Mine

    assert digest(make(2)()) == digest(make(2)())
    assert digest(make(2)()) != digest(make(2)(2.0))
    assert digest(make(2)()) != digest(make(3)())


def test_the_part_of_the_version_that_changes_numbers():
    assert [identity.major_version(v) for v in ("0.2.1", "1.4.0", "12.0.1")] == ["0.2", "1", "12"]
