"""Long-form transcripts by openai-whisper's own `transcribe`, greedy, with timestamps.

Writes `tests/golden/long_{base,tiny.en}.json`.
"""

import sys

import torch
import whisper.decoding
from clips import GOLDEN, clip_paths, load_audio
from transcripts import to_json
from weights import NAMES, Checkpoint, load_checkpoint, to_openai
from whisper.decoding import DecodingOptions, DecodingTask, GreedyDecoder

KEYS = (
    "seek",
    "start",
    "end",
    "tokens",
    "text",
    "avg_logprob",
    "compression_ratio",
    "no_speech_prob",
)
CLOSE = 1e-2


class GapRecorder(GreedyDecoder):
    """openai-whisper's greedy decoder, noting the near ties of each window."""

    windows: list[dict]

    def reset(self) -> None:
        """Begin a window."""
        self.windows.append({"steps": 0, "close": {}})

    def update(
        self, tokens: torch.Tensor, logits: torch.Tensor, sum_logprobs: torch.Tensor
    ) -> tuple[torch.Tensor, bool]:
        """Note the gap of the two best filtered logits, then decode as usual."""
        window = self.windows[-1]
        first, second = logits[0].topk(2).values.tolist()
        if first - second < CLOSE:
            window["close"][str(window["steps"])] = first - second
        window["steps"] += 1
        return super().update(tokens, logits, sum_logprobs)


def main(names: list[str]) -> None:
    """Transcribe the long and the hallucination clip with each named checkpoint."""
    for name in names:
        checkpoint = load_checkpoint(name)
        model = to_openai(checkpoint)
        check_suppressed(checkpoint, model)
        clips = {}
        for path in clip_paths("long", "hallucination"):
            audio = load_audio(path)
            clips[path] = {
                "conditioned": transcribe(model, audio, condition=True),
                "independent": transcribe(model, audio, condition=False),
            }
            print(name, path, clips[path]["conditioned"]["segments"][-1]["end"], flush=True)
        head = {
            "model": name,
            "language": "en",
            "temperature": 0.0,
            "suppress": sorted(checkpoint.config["suppress_ids"]),
            "suppress_first": checkpoint.config["suppress_ids_begin"],
        }
        (GOLDEN / f"long_{name}.json").write_text(to_json(head, clips))


def transcribe(model: whisper.Whisper, audio: object, *, condition: bool) -> dict:
    """Segments and, of every decoded window, the number of steps and the near ties."""
    GapRecorder.windows = []
    whisper.decoding.GreedyDecoder = GapRecorder
    result = model.transcribe(
        audio,
        language="en",
        fp16=False,
        temperature=0.0,
        condition_on_previous_text=condition,
    )
    segments = [{key: segment[key] for key in KEYS} for segment in result["segments"]]
    return {"segments": segments, "windows": GapRecorder.windows}


def check_suppressed(checkpoint: Checkpoint, model: whisper.Whisper) -> None:
    """openai-whisper's default suppressed tokens are those of the checkpoint's `config.json`."""
    task = DecodingTask(model, DecodingOptions(language="en", fp16=False))
    theirs = set(task._get_suppress_tokens())
    stored = set(checkpoint.config["suppress_ids"])
    if theirs != stored:
        raise ValueError(f"{checkpoint.name}: suppressed tokens differ: {sorted(theirs ^ stored)}")


if __name__ == "__main__":
    main(sys.argv[1:] or list(NAMES))
