"""Decode the clips of the committed goldens again with openai-whisper's own code.

The goldens of short clips come from `transformers` and a decoding loop of ours; this holds them to
a second implementation. Prints the largest differences, and fails on a different token.
"""

import json

import whisper
from clips import GOLDEN, log_mel
from weights import NAMES, Checkpoint, load_checkpoint, to_openai

TOLERANCE = 1e-4


def main() -> None:
    """Check `suppressed_*.json` and `language_base.json`."""
    for name in NAMES:
        checkpoint = load_checkpoint(name)
        model = to_openai(checkpoint)
        check_suppressed(checkpoint, model)
        if checkpoint.is_multilingual:
            check_language(checkpoint, model)


def check_suppressed(checkpoint: Checkpoint, model: whisper.Whisper) -> None:
    """Tokens, mean log-probability and no-speech probability of `whisper.decode`."""
    golden = json.loads((GOLDEN / f"suppressed_{checkpoint.name}.json").read_text())
    options = whisper.DecodingOptions(
        language="en",
        temperature=0.0,
        without_timestamps=True,
        suppress_tokens=golden["suppress"],
        fp16=False,
    )
    worst = 0.0
    for path, expected in golden["clips"].items():
        found = whisper.decode(model, log_mel(path)[0], options)
        spoken = [token for token in expected["tokens"] if token != checkpoint.end_of_text]
        if found.tokens != spoken:
            raise ValueError(f"{checkpoint.name}, {path}: {found.tokens} is not {spoken}")
        for key in ("avg_logprob", "no_speech_prob"):
            worst = max(worst, abs(getattr(found, key) - expected[key]))
    report(f"suppressed_{checkpoint.name}.json", worst)


def check_language(checkpoint: Checkpoint, model: whisper.Whisper) -> None:
    """Probabilities of `whisper.detect_language`."""
    golden = json.loads((GOLDEN / f"language_{checkpoint.name}.json").read_text())
    tokenizer = whisper.tokenizer.get_tokenizer(True, num_languages=model.num_languages)
    code = dict(zip(tokenizer.all_language_tokens, tokenizer.all_language_codes, strict=True))
    worst = 0.0
    for path, expected in golden["clips"].items():
        token, probabilities = whisper.detect_language(model, log_mel(path)[0], tokenizer)
        if token.item() != expected["language"]:
            raise ValueError(f"{path}: language {token.item()} is not {expected['language']}")
        for language, probability in expected["top"]:
            worst = max(worst, abs(probabilities[code[language]] - probability))
    report(f"language_{checkpoint.name}.json", worst)


def report(file: str, worst: float) -> None:
    """Print the largest difference, and raise where it is no rounding error."""
    print(f"{file}: same tokens, probabilities within {worst:.1e}", flush=True)
    if worst > TOLERANCE:
        raise ValueError(f"{file}: differs by {worst:.1e}, more than {TOLERANCE:.0e}")


if __name__ == "__main__":
    main()
