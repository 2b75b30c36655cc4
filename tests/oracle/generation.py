"""Generation of edited models: heads zeroed, early encoder states, beams.

Writes `tests/golden/{heads,beams}_tiny.en.json` and `encoder_lens_{base,tiny.en}.json`. Every job
saves after each clip and carries on where it stopped; delete a file to make it afresh.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import whisper.decoding
from clips import GOLDEN, log_mel
from decoding import Decoded, encode, greedy
from hooks import Recorder
from long_form import check_suppressed
from torch import nn
from transcripts import Model, fill, header
from weights import NAMES, Checkpoint, load_checkpoint, to_openai, to_transformers
from whisper.decoding import DecodingOptions, MaximumLikelihoodRanker

MAX_STEPS = 60
BEAM_SIZE = 5
# Five speakers of five sets, 4 to 6 s each.
CLIPS = [
    "read_en/vctk_p225_003.flac",
    "read_en/ljspeech_LJ001-0004.flac",
    "read_en/cmu_cmu_arctic_us_aew_a0001.flac",
    "read_en/fleurs_fleurs-en-003.flac",
    "read_en/librispeech_1688-142285-0003.flac",
]


class MarginRecorder(MaximumLikelihoodRanker):
    """openai-whisper's choice among finished beams, noting by how much the best leads."""

    margin: float

    def rank(self, tokens: list[list[torch.Tensor]], sum_logprobs: list[list[float]]) -> list[int]:
        """Note the lead of the best score (log-probability a token), then rank as usual."""
        pairs = zip(tokens[0], sum_logprobs[0], strict=True)
        first, second, *_ = sorted((total / len(beam) for beam, total in pairs), reverse=True)
        MarginRecorder.margin = first - second
        return super().rank(tokens, sum_logprobs)


def main() -> None:
    """Make the goldens asked for, of the checkpoints asked for."""
    jobs = {"heads": make_heads, "lens": make_lens, "beams": make_beams}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jobs", nargs="*", metavar="job", help=f"of {', '.join(jobs)}; all if none")
    parser.add_argument("--model", choices=NAMES, action="append", help="both if not given")
    args = parser.parse_args()
    for name in args.model or NAMES:
        checkpoint = load_checkpoint(name)
        model = to_transformers(checkpoint)
        for job in args.jobs or jobs:
            jobs[job](checkpoint, model)


def make_heads(checkpoint: Checkpoint, model: Model) -> None:
    """Transcripts with one attention head at a time zeroed, at every position and step."""
    if checkpoint.is_multilingual:
        return

    def knock_out(path: str) -> dict:
        mel = log_mel(path)
        states = encode(model, mel)
        runs = {"plain": generate(checkpoint, model, states)}
        for site, attention, head in attention_heads(model):
            with zero_head(attention, head):
                edited = encode(model, mel) if site.startswith("encoder") else states
                runs[site] = generate(checkpoint, model, edited)
        tokens = {site: run.tokens for site, run in runs.items()}
        return {
            "plain": tokens.pop("plain"),
            "heads": tokens,
            "close": {site: run.close() for site, run in runs.items()},
        }

    fill(GOLDEN / f"heads_{checkpoint.name}.json", suppressing(checkpoint), CLIPS, knock_out)


def make_lens(checkpoint: Checkpoint, model: Model) -> None:
    """Transcripts from the encoder's states after each number of its layers."""
    seen = Recorder(model.model.encoder)

    def read(path: str) -> dict:
        encode(model, log_mel(path))
        depths = hidden_states(model, seen)
        norm = model.model.encoder.layer_norm
        result = transcribe(checkpoint, model, [norm(state) for state in depths])
        if path == CLIPS[0]:
            result["raw"] = transcribe(checkpoint, model, depths)
        return result

    fill(GOLDEN / f"encoder_lens_{checkpoint.name}.json", suppressing(checkpoint), CLIPS, read)


def make_beams(checkpoint: Checkpoint, _model: Model) -> None:
    """openai-whisper's beam search."""
    if checkpoint.is_multilingual:
        return
    theirs = to_openai(checkpoint)
    check_suppressed(checkpoint, theirs)
    options = DecodingOptions(
        language="en",
        without_timestamps=True,
        beam_size=BEAM_SIZE,
        sample_len=MAX_STEPS,
        fp16=False,
    )
    whisper.decoding.MaximumLikelihoodRanker = MarginRecorder

    def search(path: str) -> dict:
        found = whisper.decode(theirs, log_mel(path)[0], options)
        return {
            "tokens": found.tokens,
            "avg_logprob": found.avg_logprob,
            "text": found.text,
            "margin": MarginRecorder.margin,
        }

    head = suppressing(checkpoint) | {
        "beam_size": BEAM_SIZE,
        "patience": options.patience,
        "length_penalty": options.length_penalty,
    }
    fill(GOLDEN / f"beams_{checkpoint.name}.json", head, CLIPS, search)


def suppressing(checkpoint: Checkpoint) -> dict:
    """The head of a golden made with the checkpoint's suppressed tokens."""
    return header(checkpoint, MAX_STEPS) | {
        "suppress": checkpoint.config["suppress_ids"],
        "suppress_first": checkpoint.config["suppress_ids_begin"],
    }


def generate(checkpoint: Checkpoint, model: Model, states: torch.Tensor) -> Decoded:
    """The greedy transcript of encoder states [1, frame, d_model], by `suppressing`'s head."""
    return greedy(
        model,
        states,
        checkpoint.prompt,
        suppress=checkpoint.config["suppress_ids"],
        suppress_first=checkpoint.config["suppress_ids_begin"],
        max_new_tokens=MAX_STEPS,
    )


def transcribe(checkpoint: Checkpoint, model: Model, depths: list[torch.Tensor]) -> dict:
    """Tokens and near ties of one transcript for each of the encoder states."""
    runs = [generate(checkpoint, model, states) for states in depths]
    return {"tokens": [run.tokens for run in runs], "close": [run.close() for run in runs]}


def hidden_states(model: Model, seen: Recorder) -> list[torch.Tensor]:
    """What entered each encoder layer, then what entered the final LayerNorm."""
    layers = [f"layers.{i}" for i in range(model.config.encoder_layers)]
    return [seen.inputs[name][None] for name in [*layers, "layer_norm"]]


def attention_heads(model: Model) -> Iterator[tuple[str, nn.Module, int]]:
    """Every head, as the library's name of its z, its attention module and its index."""
    stacks = [
        ("decoder.z", [layer.self_attn for layer in model.model.decoder.layers]),
        ("decoder.cross_z", [layer.encoder_attn for layer in model.model.decoder.layers]),
        ("encoder.z", [layer.self_attn for layer in model.model.encoder.layers]),
    ]
    for site, attentions in stacks:
        for layer, attention in enumerate(attentions):
            for head in range(attention.num_heads):
                yield f"{site}@{layer}.{head}", attention, head


@contextmanager
def zero_head(attention: nn.Module, head: int) -> Iterator[None]:
    """Zero a head's part of what enters the output projection, at every position."""

    def zero(_module: nn.Module, args: tuple) -> tuple:
        z = args[0].unflatten(-1, (attention.num_heads, attention.head_dim)).clone()
        z[..., head, :] = 0
        return (z.flatten(-2),)

    handle = attention.out_proj.register_forward_pre_hook(zero)
    try:
        yield
    finally:
        handle.remove()


if __name__ == "__main__":
    with torch.no_grad():
        main()
