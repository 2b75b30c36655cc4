"""OpenAI's own `.pt` files: their sizes, and their names for the parameters."""

import dataclasses
from pathlib import Path

from jaxasr_interp.checkpoint.convert import TABLE, Rule
from jaxasr_interp.checkpoint.names import strip_prefixes
from jaxasr_interp.checkpoint.stored import Tensors
from jaxasr_interp.checkpoint.torch_file import read_torch
from jaxasr_interp.errors import InputError
from jaxasr_interp.model.config import WhisperConfig

_WORDS = {
    "model.": "",
    ".layers.": ".blocks.",
    "encoder_attn_layer_norm": "cross_attn_ln",
    "self_attn_layer_norm": "attn_ln",
    "final_layer_norm": "mlp_ln",
    "encoder.layer_norm": "encoder.ln_post",
    "decoder.layer_norm": "decoder.ln",
    "encoder_attn": "cross_attn",
    "self_attn": "attn",
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "out_proj": "out",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    "embed_positions.weight": "positional_embedding",
    "embed_tokens": "token_embedding",
}
"""Parts of Hugging Face's names and what they are called here, to be replaced in this order."""
_DIMS = {
    "n_mels": "n_mels",
    "d_vocab": "n_vocab",
    "d_model": "n_audio_state",
    "encoder_layers": "n_audio_layer",
    "decoder_layers": "n_text_layer",
    "encoder_heads": "n_audio_head",
    "decoder_heads": "n_text_head",
    "max_frames": "n_audio_ctx",
    "max_tokens": "n_text_ctx",
}
_CAUSAL_MASK = "decoder.mask"


def _named(rule: Rule) -> Rule:
    name = rule.name
    for theirs, ours in _WORDS.items():
        name = name.replace(theirs, ours)
    return dataclasses.replace(rule, name=name)


OPENAI_TABLE = tuple(_named(rule) for rule in TABLE)


def read_openai(path: Path) -> tuple[WhisperConfig, Tensors]:
    """Read a `.pt` file of OpenAI's.

    Args:
        path: the file.

    Returns:
        Sizes, and tensors under OpenAI's names, which `OPENAI_TABLE` converts.

    Raises:
        InputError: the file holds something else; and see `read_torch`.
    """
    content = read_torch(path)
    match content:
        case {"dims": dict(dims), "model_state_dict": dict(state)}:
            pass
        case _:
            raise InputError(
                f"{path} is no model of OpenAI's: expected a dictionary with dims and "
                "model_state_dict; put a state dict of Hugging Face's into a folder as "
                "pytorch_model.bin, beside its config.json."
            )
    missing = [name for name in _DIMS.values() if name not in dims]
    if missing or dims.get("n_text_state") != dims["n_audio_state"]:
        raise InputError(f"{path} has dims {dims}: expected those of a Whisper model.")
    tensors = strip_prefixes(state, path)
    # A buffer that OpenAI's first models hold beside the parameters.
    tensors = {name: value for name, value in tensors.items() if name != _CAUSAL_MASK}
    width = dims["n_audio_state"]
    sizes = {name: dims[theirs] for name, theirs in _DIMS.items()}
    return WhisperConfig(encoder_d_mlp=4 * width, decoder_d_mlp=4 * width, **sizes), tensors
