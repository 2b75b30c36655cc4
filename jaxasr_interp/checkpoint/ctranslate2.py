"""Reading CTranslate2's `model.bin` (version 6) into tensors under Hugging Face's names.

The file holds named variables, each with a shape, a type and raw little-endian data, then aliases.
Whisper's stacked projections are split here, quantised weights are divided by their scales, and the
scalars that describe the architecture are checked.
"""

import dataclasses
import math
import re
import struct

import jax.numpy as jnp
import numpy as np

from jaxasr_interp.checkpoint.convert import layer_count
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
    data: memoryview
    origin: str
    offset: int = 0

    def take(self, size: int, what: str) -> memoryview:
        piece = self.data[self.offset : self.offset + size]
        if len(piece) != size:
            raise InputError(
                f"{self.origin} is truncated: it ends inside {what} at byte {len(self.data)}; "
                "fetch the file again."
            )
        self.offset += size
        return piece

    def number(self, layout: str, what: str) -> int:
        return struct.unpack("<" + layout, self.take(struct.calcsize(layout), what))[0]

    def string(self, what: str) -> str:
        raw = bytes(self.take(self.number("H", what), what))
        try:
            return raw.rstrip(b"\0").decode()
        except UnicodeDecodeError:
            raise InputError(f"{self.origin} is corrupt: {what} is not text.") from None


def read_variables(data: memoryview, origin: str) -> dict[str, np.ndarray]:
    """Read every variable of a `model.bin`, aliases included.

    Args:
        data: the file's bytes.
        origin: name of the file in errors.

    Returns:
        Arrays by variable name, which are views of `data`.

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
    variables: dict[str, np.ndarray] = {}
    for _ in range(reader.number("I", "the header")):
        name = reader.string("a variable's name")
        rank = reader.number("B", name)
        shape = tuple(reader.number("I", name) for _ in range(rank))
        kind = reader.number("B", name)
        raw = reader.take(reader.number("I", name), name)
        if kind not in _TYPES:
            raise InputError(f"{origin}: {name} has unknown type {kind}.")
        if len(raw) != math.prod(shape) * np.dtype(_TYPES[kind]).itemsize:
            raise InputError(f"{origin}: {name} of shape {shape} has {len(raw)} bytes of data.")
        variables[name] = np.frombuffer(raw, _TYPES[kind]).reshape(shape)
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


def read_tensors(data: memoryview, origin: str) -> tuple[WhisperConfig, dict[str, np.ndarray]]:
    """Read a Whisper `model.bin`.

    Args:
        data: the file's bytes.
        origin: name of the file in errors.

    Returns:
        Sizes, and tensors under Hugging Face's names (extra variables keep their own names, so that
        the conversion reports them).

    Raises:
        InputError: the file describes another architecture; and see `read_variables`.
    """
    variables = _dequantise(read_variables(data, origin))
    scalars = {name: int(v) for name, v in variables.items() if v.ndim == 0}
    for name, value in scalars.items():
        if name.split("/")[-1] not in _IGNORED_SCALARS and value != _SCALARS.get(name, 0):
            raise InputError(f"{origin} has {name} = {value}: not a Whisper model.")
    tensors: dict[str, np.ndarray] = {}
    for name, value in variables.items():
        if value.ndim:
            tensors.update(_rename(name, value, origin))
    return _config(scalars, tensors, origin), tensors


def _dequantise(variables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    plain = {}
    for name, value in variables.items():
        scale = variables.get(f"{name}_scale")
        if name.endswith("_scale") and name.removesuffix("_scale") in variables:
            continue
        if scale is not None:
            scale = scale.astype(np.float32)
            value = value.astype(np.float32) / scale.reshape(-1, *(1,) * (value.ndim - 1))
        plain[name] = value
    return plain


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


def _rename(name: str, value: np.ndarray, origin: str) -> dict[str, np.ndarray]:
    if name in _WHOLE:
        return {_WHOLE[name]: value}
    if match := re.fullmatch(r"(encoder|decoder)/(layer_norm|conv1|conv2)/(\w+)", name):
        stack, module, kind = match.groups()
        return {f"model.{stack}.{module}.{_KINDS.get(kind, kind)}": value}
    if match := re.fullmatch(r"(encoder|decoder)/layer_(\d+)/(.+)/(\w+)", name):
        stack, layer, sublayer, kind = match.groups()
        targets = _SUBLAYERS.get(sublayer)
        if targets and kind in _KINDS and len(value) % len(targets) == 0:
            prefix = f"model.{stack}.layers.{layer}"
            pieces = np.split(value, len(targets))
            named = {
                f"{prefix}.{t}.{_KINDS[kind]}": p for t, p in zip(targets, pieces, strict=True)
            }
            return _without_key_bias(named, origin)
    return {name: value}


def _without_key_bias(named: dict[str, np.ndarray], origin: str) -> dict[str, np.ndarray]:
    for name in [name for name in named if name.endswith("k_proj.bias")]:
        if named.pop(name).any():
            raise InputError(f"{origin} has a key bias ({name}): Whisper's keys have none.")
    return named


def _config(scalars: dict[str, int], tensors: dict[str, np.ndarray], origin: str) -> WhisperConfig:
    try:
        return WhisperConfig(
            n_mels=tensors["model.encoder.conv1.weight"].shape[1],
            d_vocab=tensors["model.decoder.embed_tokens.weight"].shape[0],
            d_model=tensors["model.decoder.embed_tokens.weight"].shape[1],
            encoder_layers=layer_count(tensors, "encoder"),
            decoder_layers=layer_count(tensors, "decoder"),
            encoder_heads=scalars["encoder/num_heads"],
            decoder_heads=scalars["decoder/num_heads"],
            encoder_d_mlp=tensors["model.encoder.layers.0.fc1.weight"].shape[0],
            decoder_d_mlp=tensors["model.decoder.layers.0.fc1.weight"].shape[0],
            max_frames=tensors["model.encoder.embed_positions.weight"].shape[0],
            max_tokens=tensors["model.decoder.embed_positions.weight"].shape[0],
        )
    except (KeyError, IndexError) as error:
        raise InputError(f"{origin}: its sizes cannot be read ({error.args[0]}).") from None
