"""What is kept is gone on with by the same work alone: one changed thing at a time."""

import collections
import dataclasses
import functools
import importlib
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

import jaxasr_interp as ji
from helpers.by_hand import brief_clips, hear_briefly
from helpers.extracting import extract_with
from helpers.files import sound
from helpers.sweeps import counted, plan_of
from helpers.tuned import hear
from jaxasr_interp.runtime import identity
from jaxasr_interp.runtime.identity import digest

SCALE = 2.0


def double(value):
    return SCALE * value


def times(factor):
    return lambda site, layer, value: factor * value


def heavier(model):
    """A copy of the model with one parameter changed in its last bit, of the same name."""
    copy = jax.tree.map(lambda leaf: leaf, model)
    copy.generation, copy.tokenizer, copy.source = model.generation, model.tokenizer, model.source
    bias = copy.decoder.final_norm.bias[...]
    copy.decoder.final_norm.bias[...] = bias.at[0].set(jnp.nextafter(bias[0], jnp.inf))
    return copy


# Functions.


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


def test_what_cannot_be_known_again_is_refused(tiny, utterances, tmp_path):
    class Callable:
        def __call__(self, site, layer, value):
            return value

    clean, corrupted = utterances
    plan = ji.plan_sweep(tiny, tokens=corrupted.tokens)
    runs = {"clean": clean, "corrupted": corrupted, "metric": ji.metrics.entropy()}
    with pytest.raises(ji.InputError, match=r"The edit holds a .*Callable, which cannot be known"):
        ji.activation_patching(
            tiny, plan, **runs, edit=Callable(), options=ji.SweepOptions(resume=tmp_path / "a.npz")
        )
    with (tmp_path / "file").open("w") as file, pytest.raises(ji.InputError, match="TextIOWrapper"):
        digest(lambda: file)


def test_the_part_of_the_version_that_changes_numbers():
    assert [identity.major_version(v) for v in ("0.2.1", "1.4.0", "12.0.1")] == ["0.2", "1", "12"]


# Sweeps.


def sweep(model, utterances, path, **change):
    clean, corrupted = utterances
    plan = {
        name: change.pop(name)
        for name in ("site", "layers", "alpha", "positions")
        if name in change
    }
    options = {
        "clean": clean,
        "corrupted": corrupted,
        "metric": ji.metrics.custom(lambda logits: logits[-1, 0]),
        "edit": times(2.0),
        **change,
    }
    how = {
        name: options.pop(name) for name in ("direction", "method", "alignment") if name in options
    }
    plan = plan_of(model, tokens=options["corrupted"].tokens, **{"layers": [1], **plan})
    sweep_options = ji.SweepOptions(resume=path, **how)
    return ji.activation_patching(model, plan, **options, options=sweep_options)


def test_a_changed_sweep_is_refused(tiny, utterances, tmp_path, monkeypatch):
    clean, corrupted = utterances
    path = tmp_path / "sweep.npz"
    whole = sweep(tiny, utterances, path)
    written = path.read_bytes()
    tokens = corrupted.tokens.at[-1].add(1)
    changes = [
        ({"site": "resid_mid"}, "plan"),
        ({"layers": [0]}, "plan"),
        ({"alpha": 0.5}, "plan"),
        ({"positions": "0:2"}, "plan"),
        ({"clean": ji.Utterance(clean.mel + 1e-6, clean.tokens)}, "clean"),
        ({"corrupted": ji.Utterance(corrupted.mel, tokens)}, "corrupted"),
        ({"metric": ji.metrics.custom(lambda logits: logits[-1, 1])}, "metric"),
        ({"metric": ji.metrics.log_prob(3)}, "plan, metric"),
        ({"edit": times(3.0)}, "edit"),
        ({"edit": ji.Scale(2.0)}, "edit"),
        ({"edit": None}, "edit"),
        ({"direction": "corrupted_to_clean"}, "direction"),
        ({"method": "vmap"}, "method"),
        ({"alignment": [0, 0, *range(2, len(tokens))]}, "alignment"),
    ]
    for change, what in changes:
        with pytest.raises(ji.InputError, match=rf"of another sweep \({what} differs?\)"):
            sweep(tiny, utterances, path, **change)
    with pytest.raises(ji.InputError, match=r"\(model differs\)"):
        sweep(heavier(tiny), utterances, path)
    with (
        jax.default_matmul_precision("bfloat16"),
        pytest.raises(ji.InputError, match=r"\(precision differs\)"),
    ):
        sweep(tiny, utterances, path)
    with monkeypatch.context() as patch:
        patch.setattr(identity, "major_version", lambda version="": "1000")
        with pytest.raises(ji.InputError, match="version differ"):
            sweep(tiny, utterances, path)
    again = sweep(tiny, utterances, path, on_progress=lambda *done: pytest.fail("computed again"))
    np.testing.assert_array_equal(again.patched, whole.patched)
    assert path.stat().st_size == len(written)


# Sweeps on text.


def test_a_changed_sweep_on_text_is_refused(tiny, monkeypatch, tmp_path):
    hear_briefly(monkeypatch)
    tone, noise = brief_clips()
    soundfile.write(tmp_path / "reference.wav", noise[:2000], 16000)
    clip = ji.Clip("a", tone, "a b c", "en")
    mine = ji.Intervention("mine", decoder=times(2.0))
    edits = [f"mix:decoder.mlp_out@1:ref={tmp_path}/reference.wav", mine]
    path, choice = tmp_path / "texts.jsonl", ji.Choice(max_new_tokens=3)

    def swept(model=tiny, clip=clip, edits=edits, choice=choice, on_progress=None):
        options = {"choice": choice, "resume": path, "on_progress": on_progress}
        return ji.ablation_sweep(model, [clip], edits, **options)

    whole = swept()
    silence = dataclasses.replace(tiny.generation, suppress=(1, 2, 3))
    quiet = heavier(tiny)
    quiet.decoder.final_norm.bias[...] = tiny.decoder.final_norm.bias[...]
    quiet.generation = silence
    for change, what in (
        ({"model": heavier(tiny)}, "model"),
        ({"model": quiet}, "model"),
        ({"edits": [edits[0], ji.Intervention("mine", decoder=times(3.0))]}, "edits"),
        ({"edits": [f"{edits[0]}:alpha=0.5", mine]}, "edits"),
        ({"edits": [edits[0], dataclasses.replace(mine, seed=1)]}, "edits"),
        ({"choice": dataclasses.replace(choice, temperature=0.5)}, "choice"),
    ):
        with pytest.raises(ji.InputError, match=rf"of another sweep \({what} differs\)"):
            swept(**change)
    soundfile.write(tmp_path / "reference.wav", noise[:1999], 16000)
    with pytest.raises(ji.InputError, match=r"\(edits differs\)"):
        swept()
    soundfile.write(tmp_path / "reference.wav", noise[:2000], 16000)
    assert (
        swept(on_progress=lambda *done: pytest.fail("computed again")).generated == whole.generated
    )
    # A clip of the same name with other samples is another clip.
    done = []
    swept(clip=dataclasses.replace(clip, audio=noise), on_progress=counted(done))
    assert done == [3]
    lines = path.read_bytes().splitlines(True)
    path.write_bytes(lines[0] + lines[1].replace(b'"finished": true', b'"finished": tree', 1))
    for old, new in ((b'"tokens": [', b'"tokens": [9, '), (b'"rows"', b'"sows"')):
        path.write_bytes(lines[0] + lines[1].replace(old, new, 1))
        with pytest.raises(ji.InputError, match=r"texts.jsonl is damaged"):
            swept()


# Extractions.


@pytest.fixture
def rows(tmp_path):
    for i in range(2):
        soundfile.write(tmp_path / f"{i}.wav", sound(i, 1000), 16000)
    return [{"path": str(tmp_path / f"{i}.wav"), "text": "ab", "lang": "en"} for i in range(2)]


def test_a_changed_extraction_is_refused(tiny32, rows, tmp_path):
    out, options = tmp_path / "a.zarr", {"sites": ["decoder.resid_post:end"], "text": "text"}
    extract_with(tiny32, rows, out, **options)
    whole = ji.open_activations(out).load()
    assert len(set(whole.audio_sha256.values.tolist())) == 2
    for change, what in (
        ({"sites": ["decoder.resid_mid:end"]}, "sites"),
        ({"dtype": "float16"}, "dtype"),
        ({"text": "own"}, "text"),
        ({"language": "de"}, "language"),
        ({"random_seed": 1}, "random_seed"),
        ({"batch_size": 3}, "batch_size"),
        ({"snr": [0]}, "clips, audio"),
    ):
        with pytest.raises(ji.InputError, match=rf"of another extraction \({what} differs?\)"):
            extract_with(tiny32, rows, out, **(options | change))
    with pytest.raises(ji.InputError, match=r"\(clips differs\)"):
        extract_with(tiny32, [rows[0] | {"text": "ac"}, rows[1]], out, **options)
    with pytest.raises(ji.InputError, match=r"\(model differs\)"):
        extract_with(heavier(tiny32), rows, out, **options)
    shutil.copy(rows[0]["path"], tmp_path / "kept.wav")
    soundfile.write(rows[0]["path"], sound(5, 1000), 16000)
    with pytest.raises(ji.InputError, match=r"\(audio differs\)"):
        extract_with(tiny32, rows, out, **options)
    shutil.copy(tmp_path / "kept.wav", rows[0]["path"])
    again = extract_with(tiny32, rows, out, **options)
    assert again.done == 2
    assert ji.open_activations(out).load().identical(whole)


def test_samples_that_changed_are_refused(tiny32, rows, tmp_path):
    def given(factor):
        return [
            {"audio": {"array": factor * sound(i, 1000), "sampling_rate": 16000}, "text": "ab"}
            for i in range(2)
        ]

    options = {"sites": ["encoder.resid_post:mean"]}
    extract_with(tiny32, given(1), tmp_path / "a.zarr", **options)
    extract_with(tiny32, given(1), tmp_path / "a.zarr", **options)
    with pytest.raises(ji.InputError, match=r"\(audio differs\)"):
        extract_with(tiny32, given(2), tmp_path / "a.zarr", **options)


# Tuned lenses.


def test_a_changed_training_is_refused(tiny, monkeypatch, tmp_path):
    hear(monkeypatch)
    training = ji.LensTraining(steps=2, batch_size=4, held_out=0.5)
    clips = [ji.Clip(str(i), sound(i, 3000), "ab", "en") for i in range(2)]
    whole = ji.train_tuned_lens(tiny, clips, tmp_path, training)
    for change, what in (
        ({"model": heavier(tiny)}, "model"),
        ({"clips": [dataclasses.replace(clips[0], audio=sound(7, 3000)), clips[1]]}, "clips"),
        ({"clips": [dataclasses.replace(clips[0], text="ac"), clips[1]]}, "clips"),
        ({"training": dataclasses.replace(training, learning_rate=0.1)}, "training"),
    ):
        given = {"model": tiny, "clips": clips, "training": training} | change
        with pytest.raises(ji.InputError, match=rf"of another training \({what} differs\)"):
            ji.train_tuned_lens(given["model"], given["clips"], tmp_path, given["training"])
    again = ji.train_tuned_lens(tiny, clips, tmp_path, training)
    np.testing.assert_array_equal(again.translators.weight, whole.translators.weight)
