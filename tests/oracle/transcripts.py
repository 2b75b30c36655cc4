"""Greedy transcripts and detected languages of short clips.

Writes `tests/golden/{greedy,suppressed}_{base,tiny.en}.json` and `language_base.json`. Every job
saves after each clip and carries on where it stopped; delete a file to make it afresh.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from clips import GOLDEN, clip_paths, log_mel, sample_clips
from decoding import MAX_NEW_TOKENS, encode, greedy, prompt_logits
from transformers import WhisperForConditionalGeneration
from weights import NAMES, Checkpoint, load_checkpoint, to_transformers

Model = WhisperForConditionalGeneration


def main() -> None:
    """Make the goldens asked for, of the checkpoints asked for."""
    jobs = {"greedy": make_greedy, "suppressed": make_suppressed, "language": make_language}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jobs", nargs="*", metavar="job", help=f"of {', '.join(jobs)}; all if none")
    parser.add_argument("--model", choices=NAMES, action="append", help="both if not given")
    args = parser.parse_args()
    for name in args.model or NAMES:
        checkpoint = load_checkpoint(name)
        model = to_transformers(checkpoint)
        for job in args.jobs or jobs:
            jobs[job](checkpoint, model)


def make_greedy(checkpoint: Checkpoint, model: Model) -> None:
    """Pure argmax, nothing suppressed, of every clip of kinds `read_en` and `accent`."""

    def transcribe(path: str) -> dict:
        decoded = greedy(model, encode(model, log_mel(path)), checkpoint.prompt)
        return {"tokens": decoded.tokens, "close": decoded.close()}

    head = header(checkpoint) | {"suppress": [], "suppress_first": []}
    fill(
        GOLDEN / f"greedy_{checkpoint.name}.json", head, clip_paths("read_en", "accent"), transcribe
    )


def make_suppressed(checkpoint: Checkpoint, model: Model) -> None:
    """Argmax with the checkpoint's suppressed tokens, with confidence as openai/whisper has it."""
    suppress = checkpoint.config["suppress_ids"]
    suppress_first = checkpoint.config["suppress_ids_begin"]

    def transcribe(path: str) -> dict:
        decoded = greedy(
            model,
            encode(model, log_mel(path)),
            checkpoint.prompt,
            suppress=suppress,
            suppress_first=suppress_first,
        )
        spoken = [token for token in decoded.tokens if token != checkpoint.end_of_text]
        no_speech = decoded.first_logits[0].softmax(-1)[checkpoint.no_timestamps - 1]
        return {
            "tokens": decoded.tokens,
            "avg_logprob": decoded.log_prob / (len(spoken) + 1),
            "no_speech_prob": no_speech.item(),
            "close": decoded.close(),
        }

    head = header(checkpoint) | {"suppress": suppress, "suppress_first": suppress_first}
    fill(GOLDEN / f"suppressed_{checkpoint.name}.json", head, sample_clips(8), transcribe)


def make_language(checkpoint: Checkpoint, model: Model) -> None:
    """The five likeliest languages: softmax over the language tokens after the start token."""
    if not checkpoint.is_multilingual:
        return
    languages = torch.tensor(checkpoint.config["lang_ids"])

    def detect(path: str) -> dict:
        logits = prompt_logits(model, encode(model, log_mel(path)), [checkpoint.start])[0]
        top = logits[languages].softmax(-1).topk(5)
        ids = languages[top.indices].tolist()
        return {
            "language": ids[0],
            "top": [[token, p] for token, p in zip(ids, top.values.tolist(), strict=True)],
        }

    paths = clip_paths("read_multi") + sample_clips(4)
    head = {"model": checkpoint.name, "prompt": [checkpoint.start]}
    fill(GOLDEN / f"language_{checkpoint.name}.json", head, paths, detect)


def header(checkpoint: Checkpoint, max_new_tokens: int = MAX_NEW_TOKENS) -> dict:
    """The entries every golden of transcripts begins with."""
    return {
        "model": checkpoint.name,
        "prompt": checkpoint.prompt,
        "end_of_text": checkpoint.end_of_text,
        "max_new_tokens": max_new_tokens,
    }


def fill(path: Path, head: dict, clips: list[str], compute: Callable[[str], dict]) -> None:
    """Write `head` and a result a clip, keeping the results of a file that has the same head."""
    done = json.loads(path.read_text()) if path.exists() else {}
    results = done.pop("clips", {}) if done | {"clips": 0} == head | {"clips": 0} else {}
    for number, clip in enumerate(clips, 1):
        if clip not in results:
            results[clip] = compute(clip)
            path.write_text(to_json(head, results))
            print(f"{path.name} {number}/{len(clips)} {clip}", flush=True)


def to_json(head: dict, clips: dict) -> str:
    """JSON with one line for each header entry and each clip."""
    lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    rows = [f"  {json.dumps(clip)}: {json.dumps(result)}" for clip, result in clips.items()]
    return "\n".join(["{", *lines, ' "clips": {', ",\n".join(rows), " }", "}", ""])


if __name__ == "__main__":
    main()
