"""Tensors of a checkpoint to the parameters of a model and back, strictly both ways."""

import collections
import functools
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxasr_interp.checkpoint.shapes import check_sizes, stored_sizes
from jaxasr_interp.checkpoint.stored import StoredTensor, Tensors
from jaxasr_interp.checkpoint.table import TABLE, TIED, Rule, names_of, shape_of_one
from jaxasr_interp.errors import InputError
from jaxasr_interp.model.config import WhisperConfig
from jaxasr_interp.model.whisper import Whisper

DTYPES = ("float32", "bfloat16", "float64")
_MOST_PROBLEMS = 8
_EMBEDDING = "model.decoder.embed_tokens.weight"
_ALIGNMENT = 64
_ROWS_AT_ONCE = 64
"""Rows of a matrix that are transposed together, so that they stay in a core's cache."""


def from_tensors(
    config: WhisperConfig,
    tensors: Tensors,
    dtype: str = "float32",
    origin: str = "checkpoint",
    table: Sequence[Rule] = TABLE,
) -> Whisper:
    """Build a model from the tensors of a checkpoint.

    The largest parameters come first: each is read layer by layer into its stack and handed to the
    device, so that no more than one is held twice.

    Args:
        config: sizes.
        tensors: every parameter of the checkpoint, by its name there.
        dtype: type of the parameters: `"float32"`, `"bfloat16"` or `"float64"`.
        origin: name of the checkpoint in errors.
        table: the names of the checkpoint; by default Hugging Face's.

    Returns:
        The model, with no tokenizer and default generation settings.

    Raises:
        InputError: names are left over or missing, shapes are wrong, or values are not finite; all
            problems are in one message.
    """
    check_dtype(dtype)
    check_sizes(config, stored_sizes(tensors, table, origin), origin)
    wanted = abstract_parameters(config, dtype)
    named = {rule: names_of(rule, config) for rule in table}
    problems = {rule: _misfits(rule, named[rule], tensors, wanted[rule.path]) for rule in table}
    surplus = set(tensors).difference([TIED], *named.values())
    found = [problem for own in problems.values() for problem in own]
    found += [f"unexpected {name}" for name in sorted(surplus)]
    found += [f"nothing fills {path}" for path in wanted.keys() - {rule.path for rule in table}]
    if not found:
        found += _check_tied(tensors)
    filled: dict[str, jax.Array] = {}
    fitting = [rule for rule in table if not problems[rule]]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for rule in sorted(fitting, key=lambda rule: -wanted[rule.path].size):
            stack = _aligned(wanted[rule.path].shape, wanted[rule.path].dtype)
            layers = stack if rule.stacked else stack[None]
            finite = pool.map(partial(_fill, rule), [tensors[n] for n in named[rule]], layers)
            bad = [name for name, fine in zip(named[rule], finite, strict=True) if not fine]
            found += [f"{name} holds values that are not finite" for name in bad]
            if not found:
                filled[rule.path] = jax.device_put(stack)
    if found:
        raise InputError(f"{origin} does not fit its config: {_summary(found)}.")
    return with_parameters(config, filled)


def to_tensors(model: Whisper) -> dict[str, np.ndarray]:
    """Return parameters under Hugging Face's names and layouts; the inverse of `from_tensors`."""
    parameters = parameters_by_path(model)
    tensors = {}
    for rule in TABLE:
        value = np.asarray(parameters[rule.path])
        layers = value if rule.stacked else value[None]
        for name, layer in zip(names_of(rule, model.config), layers, strict=True):
            tensors[name] = layer.T if rule.transposed else layer
    return tensors


def parameters_by_path(tree: Whisper) -> dict[str, jax.Array | jax.ShapeDtypeStruct]:
    """Return every parameter by its dotted path, such as `decoder.blocks.attn.query.kernel`."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path[:-1], simple=True, separator="."): leaf for path, leaf in leaves
    }


def abstract_parameters(config: WhisperConfig, dtype: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shape and dtype of every parameter, by path, without allocating any."""
    parameters = parameters_by_path(_abstract(config))
    return {path: jax.ShapeDtypeStruct(p.shape, jnp.dtype(dtype)) for path, p in parameters.items()}


def abstract_model(config: WhisperConfig, dtype: str) -> Whisper:
    """Make a model whose parameters have a shape and a dtype, and no values.

    Raises:
        InputError: see `check_dtype`.
    """
    check_dtype(dtype)
    return jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(p.shape, jnp.dtype(dtype)), _abstract(config)
    )


def with_parameters(
    config: WhisperConfig, parameters: Mapping[str, np.ndarray | jax.Array]
) -> Whisper:
    """Make a model that holds exactly these parameters, which are given by path."""
    template = _abstract(config)
    paths = parameters_by_path(template)
    if paths.keys() != parameters.keys():
        raise InputError(
            f"Parameters do not fit the model: {sorted(paths.keys() ^ parameters.keys())}."
        )
    leaves = [jnp.asarray(parameters[path]) for path in paths]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def check_dtype(dtype: str) -> None:
    """Raise `InputError` unless models can be loaded in `dtype` as JAX is configured."""
    if dtype not in DTYPES:
        raise InputError(f"Unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}.")
    if dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise InputError(
            "dtype float64 needs 64-bit mode: set JAX_ENABLE_X64=1 or call "
            "jax.config.update('jax_enable_x64', True) first."
        )


@functools.cache
def _abstract(config: WhisperConfig) -> Whisper:
    return jax.eval_shape(lambda: Whisper(config, rngs=nnx.Rngs(0)))


def _misfits(
    rule: Rule, names: Sequence[str], tensors: Tensors, wanted: jax.ShapeDtypeStruct
) -> list[str]:
    """Say which tensors of a parameter are missing, or of another shape or type."""
    shape, problems = shape_of_one(rule, wanted.shape), []
    for name in names:
        if name not in tensors:
            problems.append(f"missing {name}")
        elif tensors[name].shape != shape:
            problems.append(f"{name} is {tensors[name].shape}, expected {shape}")
        elif not jnp.issubdtype(tensors[name].dtype, jnp.floating):
            problems.append(f"{name} is {tensors[name].dtype}, expected floats")
    return problems


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Make an array that JAX takes over on a CPU as it is: others are copied."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _fill(rule: Rule, tensor: np.ndarray | StoredTensor, out: np.ndarray) -> bool:
    """Read one tensor into `out`; return whether it is finite."""
    values = np.asarray(tensor)
    with np.errstate(over="ignore"):
        if rule.transposed:
            for start in range(0, len(values), _ROWS_AT_ONCE):
                rows = slice(start, start + _ROWS_AT_ONCE)
                out[..., rows] = values[rows].T
        else:
            out[...] = values
    return bool(np.isfinite(out).all())


def _check_tied(tensors: Tensors) -> list[str]:
    if TIED not in tensors or np.array_equal(tensors[TIED], tensors[_EMBEDDING]):
        return []
    return [f"{TIED} differs from the token embedding it is tied to"]


def _summary(problems: list[str]) -> str:
    counts = collections.Counter(problem.split()[0] for problem in problems)
    shown = "; ".join(problems[:_MOST_PROBLEMS])
    more = len(problems) - _MOST_PROBLEMS
    return shown if more <= 0 else f"{shown}; and {more} more problems ({dict(counts)})"
