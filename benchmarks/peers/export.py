"""Write a model of ours as the folders the peers read: Hugging Face's and CTranslate2's.

    python benchmarks/peers/export.py base FOLDER

Runs in our environment. `ji.save_model` writes our own format, which the peers cannot read.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import jaxasr_interp as ji
from jaxasr_interp.checkpoint import bundled, convert


def export_model(model: ji.Whisper, folder: Path) -> Path:
    """Write `config.json` and `model.safetensors` (in the model's own dtype) into `folder`.

    A model with a tokenizer also gets the `generation_config.json` that `generate` needs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # The special ids play no part in a forward pass, but their defaults may lie outside a small
    # vocabulary, which torch's embedding refuses.
    ids = dict.fromkeys(("pad", "bos", "eos", "decoder_start"), model.config.d_vocab - 1)
    config = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "tie_word_embeddings": True,
        **model.config.to_hf(),
        **{f"{name}_token_id": value for name, value in ids.items()},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if model.tokenizer is not None:
        settings = generation_settings(model.tokenizer, model.generation, model.config.max_tokens)
        (folder / "generation_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    tensors = {k: np.ascontiguousarray(v) for k, v in convert.to_tensors(model).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def generation_settings(
    tokenizer: ji.Tokenizer, generation: ji.GenerationSettings, max_tokens: int
) -> dict[str, object]:
    """What `generate` reads beside the weights."""
    languages = {f"<|{code}|>": token for code, token in tokenizer.languages.items()}
    tasks = {"transcribe": tokenizer.special("transcribe")}
    spoken = {"lang_to_id": languages, "task_to_id": tasks} if tokenizer.multilingual else {}
    return {
        "decoder_start_token_id": tokenizer.start_of_transcript,
        "no_timestamps_token_id": tokenizer.special("notimestamps"),
        "suppress_tokens": list(generation.suppress),
        "begin_suppress_tokens": list(generation.suppress_first),
        "max_length": max_tokens,
        "is_multilingual": tokenizer.multilingual,
        **spoken,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.end_of_text),
    }


def export_ctranslate2(name: str, folder: Path) -> Path:
    """Put the files of a bundled model, as they were published, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = bundled.require_parts(name)
    with (folder / "model.bin").open("wb") as whole:
        for part in parts:
            whole.write(part.read_bytes())
    for file in ("config.json", "tokenizer.json", "vocabulary.txt"):
        shutil.copy(parts[0].parent / file, folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description="A model of ours as a Hugging Face folder.")
    parser.add_argument("model", help="anything ji.load_model takes")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    export_model(ji.load_model(options.model, options.dtype), options.folder)


if __name__ == "__main__":
    main()
