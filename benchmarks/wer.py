"""Word error rate on transcribed English speech: ours beside torch's.

    python benchmarks/wer.py [--model base] [--json FILE]

Greedy decoding, pure argmax, on every `read_en` clip. torch's tokens are those of
`tests/golden/greedy_<model>.json`, made by `tests/oracle/transcripts.py`; both sides are decoded to
text, normalised with Whisper's English rules and scored by jiwer.
"""

import argparse
import json
import time
from pathlib import Path

import jax.numpy as jnp
import jiwer
from speech import FOLDER, ROOT, read_clips
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

import jaxasr_interp as ji
from jaxasr_interp.generation.transcribe import encode_batch

BATCH = 16


def transcribe(model: ji.Whisper, paths: list[str], prompt: list[int]) -> list[str]:
    texts = []
    for start in range(0, len(paths), BATCH):
        batch = (paths[start : start + BATCH] * BATCH)[:BATCH]
        audio = [ji.load_audio(FOLDER / path) for path in batch]
        mels = jnp.stack([ji.log_mel_spectrogram(a, model.config.n_mels) for a in audio])
        states = encode_batch(model.encoder, mels)
        results = ji.generate_batch(
            model, states, prompts=[prompt] * BATCH, choice=ji.Choice(suppress=False)
        )
        texts += [result.text for result in results[: len(paths) - start]]
    return texts


def benchmark(name: str) -> dict[str, object]:
    golden = json.loads((ROOT / "tests" / "golden" / f"greedy_{name}.json").read_text())
    model = ji.load_model(name)
    assert model.tokenizer is not None
    clips = read_clips()
    paths = [clip["path"] for clip in clips]
    started = time.perf_counter()
    ours = transcribe(model, paths, golden["prompt"])
    seconds = time.perf_counter() - started
    theirs = [model.tokenizer.decode(golden["clips"][path]["tokens"]) for path in paths]
    normalise = EnglishTextNormalizer({})
    spoken = [normalise(clip["text"]) for clip in clips]
    return {
        "model": name,
        "clips": len(clips),
        "wer": jiwer.wer(spoken, [normalise(text) for text in ours]),
        "wer_torch": jiwer.wer(spoken, [normalise(text) for text in theirs]),
        "texts_that_differ": sum(a != b for a, b in zip(ours, theirs, strict=True)),
        "audio_seconds": round(sum(float(clip["seconds"]) for clip in clips), 1),
        "wall_seconds_with_compilation": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Word error rate: ours beside torch's.")
    parser.add_argument("--model", action="append", choices=("tiny.en", "base"))
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    results = [benchmark(name) for name in options.model or ("tiny.en", "base")]
    for r in results:
        print(
            f"{r['model']}: WER {r['wer']:.2%} on {r['clips']} clips, torch {r['wer_torch']:.2%}; "
            f"{r['texts_that_differ']} texts differ; {r['audio_seconds']} s of speech in "
            f"{r['wall_seconds_with_compilation']} s"
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
