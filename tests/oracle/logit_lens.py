"""The tokens that every decoder layer would say next: the logit lens of the real checkpoints.

Writes `tests/golden/logit_lens_{base,tiny.en}.npz`.
"""

import sys

import numpy as np
import torch
from clips import GOLDEN, log_mel
from decoding import encode, greedy
from generation import CLIPS
from hooks import Recorder
from transformers import WhisperForConditionalGeneration
from weights import NAMES, load_checkpoint, to_transformers

# One more than is compared, to see where the last of them is a near tie.
TOP = 4


def main(names: list[str]) -> None:
    """Read each clip's greedy transcript with each named checkpoint."""
    for name in names:
        checkpoint = load_checkpoint(name)
        model = to_transformers(checkpoint)
        seen = Recorder(model, decoder_layers(model))
        arrays = {"clips": np.array(CLIPS)}
        for clip in CLIPS:
            mel = log_mel(clip)
            transcript = greedy(model, encode(model, mel), checkpoint.prompt).tokens
            tokens = checkpoint.prompt + transcript[:-1]  # without the end of text
            logits = read(model, seen, mel, tokens)
            best = logits.topk(TOP)
            arrays[f"{clip}/tokens"] = np.array(tokens, np.int32)
            arrays[f"{clip}/top_tokens"] = best.indices.numpy().astype(np.int32)
            arrays[f"{clip}/top_logits"] = best.values.numpy()
            arrays[f"{clip}/log_total"] = logits.double().logsumexp(-1).float().numpy()
            gaps = best.values[..., :-1] - best.values[..., 1:]
            print(name, clip, f"{len(tokens)} tokens, smallest gap {float(gaps.min()):.1e}")
        np.savez_compressed(GOLDEN / f"logit_lens_{name}.npz", **arrays)


def read(
    model: WhisperForConditionalGeneration, seen: Recorder, mel: torch.Tensor, tokens: list[int]
) -> torch.Tensor:
    """Logits [layer, pos, d_vocab] of each layer's output by the final LayerNorm and `proj_out`."""
    out = model(mel, decoder_input_ids=torch.tensor([tokens]), use_cache=False)
    hidden = torch.stack([seen.outputs[layer] for layer in decoder_layers(model)])
    logits = model.proj_out(model.model.decoder.layer_norm(hidden))
    torch.testing.assert_close(logits[-1], out.logits[0])
    return logits


def decoder_layers(model: WhisperForConditionalGeneration) -> list[str]:
    """The names of the decoder's layers."""
    return [f"model.decoder.layers.{i}" for i in range(model.config.decoder_layers)]


if __name__ == "__main__":
    with torch.no_grad():
        main(sys.argv[1:] or list(NAMES))
