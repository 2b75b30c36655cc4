"""The special tokens of large-v3's vocabulary, which has one language more than the others.

Writes `tests/golden/special_tokens_large-v3.json`.
"""

import json

from clips import GOLDEN
from whisper.tokenizer import get_tokenizer


def main() -> None:
    """Write the ids of all special tokens, and of some text."""
    tokenizer = get_tokenizer(multilingual=True, num_languages=100)
    text = " Cut the grass, 剪草 — 12.5%."
    content = {
        "special": tokenizer.special_tokens,
        "prompt": [*tokenizer.sot_sequence_including_notimestamps],
        "suppress": [*tokenizer.non_speech_tokens],
        "text": text,
        "tokens": tokenizer.encode(text),
    }
    content["special"] = {k: v for k, v in content["special"].items() if not k[2:3].isdigit()}
    content["timestamp_begin"] = tokenizer.timestamp_begin
    path = GOLDEN / "special_tokens_large-v3.json"
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
