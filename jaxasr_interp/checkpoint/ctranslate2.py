"""Reading CTranslate2's `model.bin` (version 6) into tensors under Hugging Face's names.

The file holds named variables, each with a shape, a type and raw little-endian data, then aliases.
Whisper's stacked projections are split here, quantised weights are divided by their scales, and the
scalars that describe the architecture are checked. Values are read when they are used.
"""

import dataclasses
import math
import re
import struct
from functools import partial

import jax.numpy as jnp
import numpy as np

from jaxasr_interp.checkpoint.shapes import stored_sizes
from jaxasr_interp.checkpoint.stored import FileBytes, StoredTensor
from jaxasr_interp.checkpoint.table import TABLE
from jaxasr_interp.errors import InputError
from jaxasr_interp.model.config import WhisperConfig

_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16, 5: jnp.bfloat16}
_SCALARS = {
    "decoder/activation": 3,
    "encoder/activation": 3,
    "decoder/pre_norm": 1,
    "encoder/pre_norm": 1,
}
_IGNORED_SCALARS = ("num_heads", "alignment_heads", "alignment_layer")


@dataclasses.dataclass
class _Reader:
    data: FileBytes
    origin: str
    offset: int = 0

    def skip(self, size: int, what: str) -> int:
        """Pass over some bytes; return where they begin."""
        start = self.offset
        if start + size > len(self.data):
            raise InputError(
                f"{self.origin} is truncated: it ends inside {what} at byte {len(self.data)}; "
                "fetch the file again."
            )
        self.offset += size
        return start

    def take(self, size: int, what: str) -> bytes:
        start = self.skip(size, what)
        return self.data[start : start + size].tobytes()

    def number(self, layout: str, what: str) -> int:
        return struct.unpack("<" + layout, self.take(struct.calcsize(layout), what))[0]

    def string(self, what: str) -> str:
        raw = self.take(self.number("H", what), what)
        try:
            return raw.rstrip(b"\0").decode()
        except UnicodeDecodeError:
            raise InputError(f"{self.origin} is corrupt: {what} is not text.") from None


def read_variables(data: FileBytes, origin: str) -> dict[str, StoredTensor]:
    """Find every variable of a `model.bin`, aliases included.

    Args:
        data: the file's bytes.
        origin: name of the file in errors.

    Returns:
        Tensors by variable name.

    Raises:
        InputError: the file is no version 6 Whisper model, truncated, or has bytes left over.
    """
    reader = _Reader(data, origin)
    version = reader.number("I", "the header")
    if version != 6:
        raise InputError(
            f"{origin} is not a CTranslate2 model of version 6 (its first number is {version})."
        )
    spec = reader.string("the header")
    if spec != "WhisperSpec":
        raise InputError(f"{origin} holds a {spec!r}: expected a Whisper model (WhisperSpec).")
    reader.number("I", "the header")
    variables: dict[str, StoredTensor] = {}
    for _ in range(reader.number("I", "the header")):
        name = reader.string("a variable's name")
        rank = reader.number("B", name)
        shape = tuple(reader.number("I", name) for _ in range(rank))
        kind = reader.number("B", name)
        size = reader.number("I", name)
        start = reader.skip(size, name)
        if kind not in _TYPES:
            raise InputError(f"{origin}: {name} has unknown type {kind}.")
        dtype = np.dtype(_TYPES[kind])
        if size != math.prod(shape) * dtype.itemsize:
            raise InputError(f"{origin}: {name} of shape {shape} has {size} bytes of data.")
        if name in variables:
            raise InputError(f"{origin} holds {name} a second time.")
        variables[name] = StoredTensor(shape, dtype, partial(_values, data, start, shape, dtype))
    for _ in range(reader.number("I", "the aliases")):
        alias, target = reader.string("an alias"), reader.string("an alias")
        if target not in variables:
            raise InputError(f"{origin}: {alias} is an alias of {target}, which is missing.")
        for suffix in ("", "_scale"):
            if target + suffix in variables:
                variables[alias + suffix] = variables[target + suffix]
    if reader.offset != len(data):
        raise InputError(f"{origin} has {len(data) - reader.offset} bytes after its end.")
    return variables


def _values(data: FileBytes, start: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    return data[start : start + size].view(dtype).reshape(shape)


def read_tensors(data: FileBytes, origin: str) -> tuple[WhisperConfig, dict[str, StoredTensor]]:
    """Find the tensors of a Whisper `model.bin`.

    Args:
        data: the file's bytes.
        origin: name of the file in errors.

    Returns:
        Sizes, and tensors under Hugging Face's names (extra variables keep their own names, so that
        the conversion reports them).

    Raises:
        InputError: the file describes another architecture; and see `read_variables`.
    """
    variables = _dequantised(read_variables(data, origin), origin)
    scalars = {name: int(np.asarray(v)) for name, v in variables.items() if not v.shape}
    for name, value in scalars.items():
        if name.split("/")[-1] not in _IGNORED_SCALARS and value != _SCALARS.get(name, 0):
            raise InputError(f"{origin} has {name} = {value}: not a Whisper model.")
    tensors: dict[str, StoredTensor] = {}
    for name, value in variables.items():
        if value.shape:
            tensors.update(_rename(name, value, origin))
    heads = {}
    for stack in ("encoder", "decoder"):
        if f"{stack}/num_heads" not in scalars:
            raise InputError(f"{origin} does not tell its heads: missing {stack}/num_heads.")
        heads[f"{stack}_heads"] = scalars[f"{stack}/num_heads"]
    return WhisperConfig(**heads, **stored_sizes(tensors, TABLE, origin)), tensors


def _dequantised(variables: dict[str, StoredTensor], origin: str) -> dict[str, StoredTensor]:
    plain = {}
    for name, value in variables.items():
        scale = variables.get(f"{name}_scale")
        if name.endswith("_scale") and name.removesuffix("_scale") in variables:
            continue
        if scale is not None:
            if scale.shape not in ((), value.shape[:1]):
                raise InputError(f"{origin}: {name}_scale has shape {scale.shape}.")
            read = partial(_divide, value, scale)
            value = StoredTensor(value.shape, np.dtype(np.float32), read)
        plain[name] = value
    return plain


def _divide(value: StoredTensor, scale: StoredTensor) -> np.ndarray:
    divisor = np.asarray(scale).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(value) / divisor.reshape(-1, *(1,) * (len(value.shape) - 1))


_SUBLAYERS: dict[str, tuple[str, ...]] = {
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
_WHOLE = {
    "encoder/position_encodings/encodings": "model.encoder.embed_positions.weight",
    "decoder/position_encodings/encodings": "model.decoder.embed_positions.weight",
    "decoder/embeddings/weight": "model.decoder.embed_tokens.weight",
    "decoder/projection/weight": "proj_out.weight",
}
_KINDS = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}


def _rename(name: str, value: StoredTensor, origin: str) -> dict[str, StoredTensor]:
    if name in _WHOLE:
        return {_WHOLE[name]: value}
    if match := re.fullmatch(r"(encoder|decoder)/(layer_norm|conv1|conv2)/(\w+)", name):
        stack, module, kind = match.groups()
        return {f"model.{stack}.{module}.{_KINDS.get(kind, kind)}": value}
    if match := re.fullmatch(r"(encoder|decoder)/layer_(\d+)/(.+)/(\w+)", name):
        stack, layer, sublayer, kind = match.groups()
        targets = _SUBLAYERS.get(sublayer)
        if targets and kind in _KINDS and value.shape[0] % len(targets) == 0:
            prefix, rows = f"model.{stack}.layers.{layer}", value.shape[0] // len(targets)
            named = {
                f"{prefix}.{target}.{_KINDS[kind]}": _rows(value, i * rows, rows)
                for i, target in enumerate(targets)
            }
            return _without_key_bias(named, origin)
    return {name: value}


def _rows(value: StoredTensor, start: int, count: int) -> StoredTensor:
    read = lambda: np.asarray(value)[start : start + count]  # noqa: E731
    return StoredTensor((count, *value.shape[1:]), value.dtype, read)


def _without_key_bias(named: dict[str, StoredTensor], origin: str) -> dict[str, StoredTensor]:
    for name in [name for name in named if name.endswith("k_proj.bias")]:
        if np.asarray(named.pop(name)).any():
            raise InputError(f"{origin} has a key bias ({name}): Whisper's keys have none.")
    return named
