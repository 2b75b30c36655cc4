"""The files of a tokenizer, all brought into the form of a `tokenizer.json`."""

import json
import re
from pathlib import Path
from typing import Any

VOCABULARY = "vocab.json"
_MERGES = "merges.txt"
_ADDED = "added_tokens.json"
_SETTINGS = "tokenizer_config.json"
_MARK = re.compile(r"<\|.*\|>")
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def read_tokenizer(path: Path, extra_language: str | None) -> bytes:
    """Read the files of a tokenizer as the content of a `tokenizer.json`.

    Args:
        path: a `tokenizer.json`, or a `vocab.json` that lies beside a `merges.txt`; added tokens
            are in an `added_tokens.json` or a `tokenizer_config.json` beside it.
        extra_language: code of a language that follows those of the file, see `Tokenizer`.

    Raises:
        Exception: of many kinds, where a file is missing or damaged.
    """
    if path.name != VOCABULARY and extra_language is None:
        return path.read_bytes()
    content = _joined(path) if path.name == VOCABULARY else _read(path)
    if extra_language is not None:
        _insert_language(content, extra_language)
    return json.dumps(content).encode()


def _read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def _joined(path: Path) -> dict[str, Any]:
    """Join a vocabulary, its merges and its added tokens."""
    vocabulary: dict[str, int] = _read(path)
    lines = path.with_name(_MERGES).read_text("utf-8").split("\n")
    merges = [line for line in lines if line and not line.startswith("#version")]
    added = {token: number for token, number in vocabulary.items() if _MARK.fullmatch(token)}
    if (tokens := path.with_name(_ADDED)).is_file():
        added |= _read(tokens)
    special = {token for token in added if _MARK.fullmatch(token)}
    if (settings := path.with_name(_SETTINGS)).is_file():
        for number, token in _read(settings).get("added_tokens_decoder", {}).items():
            added[token["content"]] = int(number)
            if token.get("special"):
                special.add(token["content"])
    ordinary = {token: number for token, number in vocabulary.items() if token not in added}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": number, "content": token, "special": token in special, **_FLAGS}
            for token, number in sorted(added.items(), key=lambda item: item[1])
        ],
        "pre_tokenizer": _BYTES,
        "decoder": _BYTES,
        "model": {"type": "BPE", "vocab": ordinary, "merges": merges},
    }


def _insert_language(content: dict[str, Any], code: str) -> None:
    """Add a language behind the last one, where the tasks begin, and shift what follows by one."""
    added = content["added_tokens"]
    at = next(token["id"] for token in added if token["content"] == "<|translate|>")
    for token in added:
        token["id"] += token["id"] >= at
    position = next(i for i, token in enumerate(added) if token["content"] == "<|translate|>")
    added.insert(position, {"id": at, "content": f"<|{code}|>", "special": True, **_FLAGS})
    content["post_processor"] = None  # It names special tokens by their ids.
