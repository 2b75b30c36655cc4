"""Fixtures: the tiny random model, real models and real speech.

JAX is set to refuse implicit dtype and rank promotion, and every function of the library checks its
jaxtyping signature with beartype.
"""

import csv
import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

pytest.register_assert_rewrite("helpers")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Tests run on the CPU, and so do the processes that they start, whatever else is there.
os.environ["JAX_PLATFORMS"] = "cpu"
jax.config.update("jax_platforms", "cpu")
# Sweeps spread over devices; all else runs on the first.
jax.config.update("jax_num_cpu_devices", 4)
# Models are tiny and programs many, here and in the processes that tests start: compiled in haste.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
jax.config.update("jax_disable_most_optimizations", True)
jaxtyping.install_import_hook("jaxasr_interp", "beartype.beartype")

# The processes that run tests, and those that tests start, share the programs that take long to
# compile.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _PROGRAMS = tempfile.TemporaryDirectory(prefix="programs-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _PROGRAMS.name
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

# Behind the hook and the rewriting: neither reaches what is imported before.
from helpers.golden import GOLDEN  # noqa: E402
from helpers.real import REAL_MODELS, data_folder, real_model  # noqa: E402


@pytest.fixture(scope="session")
def data() -> Path:
    folder = data_folder()
    if folder is None:
        pytest.skip("no speech: set JAXASR_DATA, or put it in ../shared/data")
    return folder


@pytest.fixture(scope="session")
def manifest(data) -> list[dict[str, str]]:
    with (data / "manifest.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


@pytest.fixture(params=REAL_MODELS)
def real(request):
    """Each bundled model, by name."""
    return request.param, real_model(request.param)


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    """What torch computes at every site of the tiny random model, in float64."""
    with np.load(GOLDEN / "tiny_random" / "activations.npz") as arrays:
        return dict(arrays)


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Thousands of compiled programs in one process exhaust its memory maps."""
    yield
    jax.clear_caches()


@pytest.fixture
def optimised():
    """For tests whose programs are compiled as they are for a user."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def x64():
    """Double precision."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def tiny(x64, tiny_tokenizer):
    """The tiny random model of the goldens in float64, with a tokenizer of its special tokens."""
    from jaxasr_interp.checkpoint.load import load_model

    model = load_model(GOLDEN / "tiny_random", dtype="float64")
    model.tokenizer = tiny_tokenizer
    return model


@pytest.fixture
def tiny32(tiny_tokenizer):
    """The same model in float32."""
    from jaxasr_interp.checkpoint.load import load_model

    model = load_model(GOLDEN / "tiny_random")
    model.tokenizer = tiny_tokenizer
    return model


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory):
    """30 letters and the special tokens 30 to 39; ids from 40 on are timestamps."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    from jaxasr_interp.speech.tokenizer import Tokenizer as WhisperTokenizer

    letters = ["Ġ", *"abcdefghijklmnopqrstuvwxyz", "'", ",", "."]
    special = (
        "endoftext startoftranscript en de translate transcribe startoflm startofprev nospeech"
    )
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = [f"<|{name}|>" for name in (*special.split(), "notimestamps")]
    backend.add_special_tokens([AddedToken(name, special=True) for name in names])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    backend.save(str(path))
    return WhisperTokenizer(str(path))


@pytest.fixture
def invoke(capsys, monkeypatch, tmp_path):
    """The command line in this process: its exit code, output and errors."""
    from jaxasr_interp.cli import main

    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            main(list(map(str, arguments)))
        return (end.value.code or 0, *capsys.readouterr())

    return call


@pytest.fixture
def utterances(tiny, golden):
    """The goldens' clean and corrupted run."""
    import jaxasr_interp as ji

    return (
        ji.Utterance(jnp.asarray(golden["mel_a"]), jnp.asarray(golden["tokens_a"])),
        ji.Utterance(jnp.asarray(golden["mel_b"]), jnp.asarray(golden["tokens_b"])),
    )
