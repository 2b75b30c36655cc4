"""10,000 lines of text in 20 languages, and how tiktoken encodes them with OpenAI's own files.

Also the transcripts of `greedy_*.json` whose text tiktoken encodes otherwise than the model wrote
it: one text has several tokenisations, and a model does not always write the encoder's.

    python encodings.py Django-*.whl

The lines are messages of Django's translations (BSD-3-Clause, Django Software Foundation and its
translators), which the wheel holds.
"""

import hashlib
import json
import lzma
import sys
import zipfile
from pathlib import Path

import numpy as np
import polib
import tiktoken
from whisper.tokenizer import get_encoding

# fmt: off
LANGUAGES = [
    "ar", "bg", "de", "el", "es", "fa", "fr", "he", "ne", "it",
    "ja", "ko", "pl", "pt", "ru", "th", "tr", "uk", "vi", "zh_Hans",
]
# fmt: on
LINES, BLOCK = 10_000, 100
GOLDEN = Path(__file__).parents[1] / "golden"


def messages(wheel: zipfile.ZipFile, language: str) -> list[str]:
    """All translated messages of one language, each once, in order."""
    ends = f"/locale/{language}/LC_MESSAGES/django.po"
    found: dict[str, None] = {}
    for name in sorted(name for name in wheel.namelist() if name.endswith(ends)):
        for entry in polib.pofile(wheel.read(name).decode("utf-8")):
            for text in (entry.msgstr, *entry.msgstr_plural.values()):
                for line in text.splitlines():
                    if line.strip():
                        found[line] = None
    return list(found)


def digest(rows: list[list[int]]) -> str:
    """SHA-256 of the ids of some lines, each with its length before it."""
    flat = [number for row in rows for number in (len(row), *row)]
    return hashlib.sha256(np.array(flat, "<i4").tobytes()).hexdigest()


def otherwise(model: str, encoding: tiktoken.Encoding) -> dict[str, list[int]]:
    """The encoding of each transcript that the model wrote in other tokens, by clip."""
    greedy = json.loads((GOLDEN / f"greedy_{model}.json").read_text())
    found = {}
    for clip, written in greedy["clips"].items():
        tokens = [token for token in written["tokens"] if token != greedy["end_of_text"]]
        encoded = encoding.encode(encoding.decode(tokens), disallowed_special=())
        if encoded != tokens:
            found[clip] = encoded
    return found


def main(path: str) -> None:
    """Write the lines, and a digest of the ids of every hundred."""
    with zipfile.ZipFile(path) as wheel:
        each = [messages(wheel, language) for language in LANGUAGES]
    some = LINES // len(LANGUAGES)
    assert min(map(len, each)) >= some, {k: len(v) for k, v in zip(LANGUAGES, each, strict=True)}
    lines = []
    for number, own in enumerate(each):
        for i, line in enumerate(own[:some]):
            # In a transcript a line begins with a space; every fourth is as it is written.
            lines.append(line if (number + i) % 4 == 0 else " " + line)
    text = "\n".join(lines) + "\n"
    packed = lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)
    (GOLDEN / "lines.txt.xz").write_bytes(packed)
    digests = {"languages": LANGUAGES, "block": BLOCK}
    for name in ("multilingual", "gpt2"):
        encoding = get_encoding(name)
        ids = [encoding.encode(line, disallowed_special=()) for line in lines]
        digests[name] = [digest(ids[i : i + BLOCK]) for i in range(0, len(ids), BLOCK)]
    for model, name in (("base", "multilingual"), ("tiny.en", "gpt2")):
        digests[f"otherwise {model}"] = otherwise(model, get_encoding(name))
    text = json.dumps(digests, indent=None, separators=(",", ": ")).replace('",', '",\n')
    (GOLDEN / "encodings.json").write_text(text + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
