"""The table between Hugging Face's parameter names and ours, applied strictly both ways."""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.config import WhisperConfig
from jaxasr_interp.model.whisper import Whisper

type Tensors = Mapping[str, np.ndarray]

DTYPES = ("float32", "bfloat16", "float64")
_MOST_PROBLEMS = 8


@dataclasses.dataclass(frozen=True)
class Rule:
    """One parameter: our path and Hugging Face's name, with `{layer}` for stacked ones."""

    path: str
    name: str
    transposed: bool = False


def _linear(path: str, name: str, bias: bool = True) -> Iterator[Rule]:
    yield Rule(f"{path}.kernel", f"{name}.weight", transposed=True)
    if bias:
        yield Rule(f"{path}.bias", f"{name}.bias")


def _norm(path: str, name: str) -> Iterator[Rule]:
    yield Rule(f"{path}.scale", f"{name}.weight")
    yield Rule(f"{path}.bias", f"{name}.bias")


def _attention(path: str, name: str) -> Iterator[Rule]:
    yield from _linear(f"{path}.query", f"{name}.q_proj")
    yield from _linear(f"{path}.key", f"{name}.k_proj", bias=False)
    yield from _linear(f"{path}.value", f"{name}.v_proj")
    yield from _linear(f"{path}.out", f"{name}.out_proj")


def _stack(stack: str) -> Iterator[Rule]:
    blocks, layers = f"{stack}.blocks", f"model.{stack}.layers.{{layer}}"
    yield from _norm(f"{blocks}.attn_norm", f"{layers}.self_attn_layer_norm")
    yield from _attention(f"{blocks}.attn", f"{layers}.self_attn")
    yield from _norm(f"{blocks}.mlp_norm", f"{layers}.final_layer_norm")
    yield from _linear(f"{blocks}.mlp.up", f"{layers}.fc1")
    yield from _linear(f"{blocks}.mlp.down", f"{layers}.fc2")
    yield Rule(f"{stack}.pos_embed", f"model.{stack}.embed_positions.weight")
    yield from _norm(f"{stack}.final_norm", f"model.{stack}.layer_norm")


def _table() -> Iterator[Rule]:
    yield from _linear("encoder.conv1", "model.encoder.conv1")
    yield from _linear("encoder.conv2", "model.encoder.conv2")
    yield from _stack("encoder")
    yield Rule("decoder.embed", "model.decoder.embed_tokens.weight")
    yield from _stack("decoder")
    cross = "model.decoder.layers.{layer}"
    yield from _norm("decoder.blocks.cross_norm", f"{cross}.encoder_attn_layer_norm")
    yield from _attention("decoder.blocks.cross_attn", f"{cross}.encoder_attn")


TABLE = tuple(_table())
TIED = "proj_out.weight"


def from_tensors(
    config: WhisperConfig, tensors: Tensors, dtype: str = "float32", origin: str = "checkpoint"
) -> Whisper:
    """Build a model from tensors under Hugging Face's names.

    Args:
        config: sizes.
        tensors: every parameter of the checkpoint.
        dtype: type of the parameters: `"float32"`, `"bfloat16"` or `"float64"`.
        origin: name of the checkpoint in errors.

    Returns:
        The model, with no tokenizer and default generation settings.

    Raises:
        InputError: names are left over or missing, shapes are wrong, or values are not finite; all
            problems are in one message.
    """
    check_dtype(dtype)
    wanted = abstract_parameters(config, dtype)
    unused = set(tensors)
    problems: list[str] = []
    filled: dict[str, np.ndarray] = {}
    for rule in TABLE:
        expected = wanted[rule.path].shape
        names = _names(rule, config)
        unused.difference_update(names)
        absent = [name for name in names if name not in tensors]
        if absent:
            problems += [f"missing {name}" for name in absent]
            continue
        shape = expected[1:] if "{layer}" in rule.name else expected
        shape = shape[::-1] if rule.transposed else shape
        wrong = [name for name in names if tensors[name].shape != shape]
        if wrong:
            problems += [f"{name} is {tensors[name].shape}, expected {shape}" for name in wrong]
            continue
        filled[rule.path] = _fill(rule, [tensors[name] for name in names], dtype)
        if not np.isfinite(filled[rule.path]).all():
            problems.append(f"{rule.name} holds values that are not finite")
    problems += _check_tied(tensors, unused)
    problems += [f"unexpected {name}" for name in sorted(unused)]
    problems += [f"nothing fills {path}" for path in wanted.keys() - {rule.path for rule in TABLE}]
    if problems:
        raise InputError(f"{origin} does not fit its config: {_summary(problems)}.")
    return with_parameters(config, filled)


def to_tensors(model: Whisper) -> dict[str, np.ndarray]:
    """Return parameters under Hugging Face's names and layouts; the inverse of `from_tensors`."""
    parameters = parameters_by_path(model)
    tensors = {}
    for rule in TABLE:
        value = np.asarray(parameters[rule.path])
        layers = value if "{layer}" in rule.name else value[None]
        for name, layer in zip(_names(rule, model.config), layers, strict=True):
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


def layer_count(names: Mapping[str, object], stack: str) -> int:
    """Count the layers of `stack` in tensor names."""
    pattern = re.compile(rf"model\.{stack}\.layers\.(\d+)\.")
    return 1 + max((int(m[1]) for m in map(pattern.match, names) if m), default=-1)


@functools.cache
def _abstract(config: WhisperConfig) -> Whisper:
    return jax.eval_shape(lambda: Whisper(config, rngs=nnx.Rngs(0)))


def _names(rule: Rule, config: WhisperConfig) -> list[str]:
    if "{layer}" not in rule.name:
        return [rule.name]
    layers = config.encoder_layers if rule.path.startswith("encoder") else config.decoder_layers
    return [rule.name.format(layer=layer) for layer in range(layers)]


def _fill(rule: Rule, values: list[np.ndarray], dtype: str) -> np.ndarray:
    cast = [(v.T if rule.transposed else v).astype(jnp.dtype(dtype)) for v in values]
    return np.stack(cast) if "{layer}" in rule.name else cast[0]


def _check_tied(tensors: Tensors, unused: set[str]) -> list[str]:
    if TIED not in tensors:
        return []
    unused.discard(TIED)
    if np.array_equal(tensors[TIED], tensors.get("model.decoder.embed_tokens.weight", np.empty(0))):
        return []
    return [f"{TIED} differs from the token embedding it is tied to"]


def _summary(problems: list[str]) -> str:
    counts = collections.Counter(problem.split()[0] for problem in problems)
    shown = "; ".join(problems[:_MOST_PROBLEMS])
    more = len(problems) - _MOST_PROBLEMS
    return shown if more <= 0 else f"{shown}; and {more} more problems ({dict(counts)})"
