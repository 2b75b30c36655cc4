"""Residual streams and logits of the real checkpoints on one clip, in float32.

Writes `tests/golden/{base,tiny.en}_activations.npz`.
"""

import sys

import numpy as np
import torch
from clips import GOLDEN, JFK, log_mel
from decoding import encode, greedy
from hooks import Recorder
from transformers import WhisperForConditionalGeneration
from weights import NAMES, load_checkpoint, to_transformers

# The clip ends at frame 550; the rest is padding.
FRAMES = np.array([0, 1, 40, 137, 333, 549, 550, 901, 1499], np.int32)
COLUMN_STEP = 37


def main(names: list[str]) -> None:
    """Record each named checkpoint."""
    for name in names:
        checkpoint = load_checkpoint(name)
        model = to_transformers(checkpoint)
        mel = log_mel(JFK)
        transcript = greedy(model, encode(model, mel), checkpoint.prompt).tokens
        tokens = checkpoint.prompt + transcript[:-1]  # without the end of text
        arrays = record(model, mel, tokens)
        exact = record(model.double(), mel.double(), tokens)
        noise = {
            f"float32_error/{key}": np.abs(value - exact[key]).max().astype(np.float32)
            for key, value in arrays.items()
        }
        columns = np.arange(0, model.config.vocab_size, COLUMN_STEP, dtype=np.int32)
        logits = arrays.pop("logits")
        np.savez_compressed(
            GOLDEN / f"{name}_activations.npz",
            frame_index=FRAMES,
            tokens=np.array(tokens, np.int32),
            column_index=columns,
            logits_columns=logits[:, columns],
            logits_last=logits[-1],
            logits_absmax=np.abs(logits).max(),
            **arrays,
            **noise,
        )
        print(name, {key: float(value) for key, value in noise.items()})


@torch.no_grad()
def record(
    model: WhisperForConditionalGeneration, mel: torch.Tensor, tokens: list[int]
) -> dict[str, np.ndarray]:
    """Hidden states, final LayerNorms and logits of one forward pass without a cache."""
    norms = ["model.encoder.layer_norm", "model.decoder.layer_norm"]
    encoder = [f"model.encoder.layers.{i}" for i in range(model.config.encoder_layers)]
    decoder = [f"model.decoder.layers.{i}" for i in range(model.config.decoder_layers)]
    seen = Recorder(model, [*encoder, *decoder, *norms])
    logits = model(mel, decoder_input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    frames = torch.from_numpy(FRAMES).long()
    return {
        "encoder/hidden": hidden(seen, encoder)[:, frames].numpy(),
        "encoder/ln_final": seen.outputs[norms[0]][frames].numpy(),
        "decoder/hidden": hidden(seen, decoder).numpy(),
        "decoder/ln_final": seen.outputs[norms[1]].numpy(),
        "logits": logits.numpy(),
    }


def hidden(seen: Recorder, layers: list[str]) -> torch.Tensor:
    """`resid_pre` of the first layer, then `resid_post` of each [layer + 1, row, d_model]."""
    return torch.stack([seen.inputs[layers[0]], *(seen.outputs[layer] for layer in layers)])


if __name__ == "__main__":
    main(sys.argv[1:] or list(NAMES))
