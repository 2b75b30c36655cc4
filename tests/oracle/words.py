"""Word times of short clips by openai-whisper's own alignment of its greedy transcripts.

Writes `tests/golden/words_{base,tiny.en}.json`, saving after each clip and carrying on where it
stopped.
"""

import sys

import torch
import whisper
from clips import GOLDEN, JFK, load_audio, log_mel
from generation import CLIPS
from long_form import check_suppressed
from transcripts import fill
from weights import NAMES, Checkpoint, load_checkpoint, to_openai
from whisper.audio import HOP_LENGTH
from whisper.timing import find_alignment
from whisper.tokenizer import Tokenizer, get_tokenizer

# Longer and shorter ones, and one of numbers.
MORE = [
    JFK,
    "read_en/librispeech_2033-164914-0006.flac",
    "read_en/ljspeech_LJ001-0002.flac",
    "read_en/libri_26-495-0018.flac",
    "read_en/fleurs_fleurs-en-001.flac",
]


def main(names: list[str]) -> None:
    """Align the clips with each named checkpoint."""
    for name in names:
        checkpoint = load_checkpoint(name)
        model = to_openai(checkpoint)
        model.set_alignment_heads(whisper._ALIGNMENT_HEADS[name])
        check_suppressed(checkpoint, model)
        tokenizer = get_tokenizer(
            checkpoint.is_multilingual,
            num_languages=model.num_languages,
            language="en",
            task="transcribe",
        )
        make_words(checkpoint, model, tokenizer)


def make_words(checkpoint: Checkpoint, model: whisper.Whisper, tokenizer: Tokenizer) -> None:
    """Transcribe and align every clip."""
    options = whisper.DecodingOptions(
        language="en", temperature=0.0, without_timestamps=True, fp16=False
    )

    def align(path: str) -> dict:
        mel = log_mel(path)[0]
        # As `whisper.transcribe` counts the frames of what is not padding.
        num_frames = len(load_audio(path)) // HOP_LENGTH
        tokens = whisper.decode(model, mel, options).tokens
        words = find_alignment(model, tokenizer, tokens, mel, num_frames)
        return {
            "num_frames": num_frames,
            "tokens": tokens,
            "words": [[w.word, float(w.start), float(w.end), w.tokens] for w in words],
            "probability": [float(w.probability) for w in words],
        }

    head = {
        "model": checkpoint.name,
        "prompt": checkpoint.prompt,
        "end_of_text": checkpoint.end_of_text,
        "alignment_heads": model.alignment_heads.indices().T.tolist(),
    }
    fill(GOLDEN / f"words_{checkpoint.name}.json", head, CLIPS + MORE, align)


if __name__ == "__main__":
    with torch.no_grad():
        main(sys.argv[1:] or list(NAMES))
