"""Generation against PyTorch and CTranslate2: plain transcripts, and one for each head zeroed.

    benchmarks/peers/environment.sh [FOLDER]
    python benchmarks/generation.py --peers FOLDER/bin/python [--case heads] [--json FILE]

All sides start from the same spectrograms and take the most probable token, without timestamps and
without the tokens that the checkpoint suppresses. They run in turns (A B A B …), warm, each with
its own encodes; ratios are medians of the rounds' ratios; compile time is apart. In the same line:
how many of the peer's transcripts differ from ours, token by token.

- `plain`: clips one by one and in batches. Peers: `transformers`' `generate`, with its cache, and
  CTranslate2, faster-whisper's engine, in float32. Peak memory is of the process, which holds the
  model; ours includes compilation.
- `heads`: every head of the decoder zeroed by itself. Peers: `generate` for each head and clip,
  with a hook, from the spectrogram or given the encoder's output. They are timed on one head of
  every layer and kind of attention, another one in each round, and scaled to all heads.

`share of floor` is the job's FLOPs (encoder, cross keys and values, every token of every
transcript) at the rate of a 2048³ matrix product measured in turns with it.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import harness
import jax
import jax.numpy as jnp
import numpy as np
import speech
from generation_sides import (
    MAX_WITHOUT_A_HEAD,
    Clips,
    OurHeads,
    Ours,
    Row,
    Side,
    TheirHeads,
    differing,
)
from harness import Pair, Peer, in_turn

import jaxasr_interp as ji
from jaxasr_interp.generation.options import MAX_NEW_TOKENS
from jaxasr_interp.patching import cost

BATCHES = (1, 8)


@dataclasses.dataclass(frozen=True)
class Peers:
    """The peers' processes: `torch` has the model, `ctranslate2` the same as it was published."""

    torch: Peer
    ctranslate2: Peer
    versions: Row

    def give(self, clips: Clips) -> None:
        """Give both the clips."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "speech.npz"
            np.savez(file, mels=np.asarray(clips.mels))
            for peer in (self.torch, self.ctranslate2):
                peer("speech", file=str(file))


def main() -> None:
    parser = argparse.ArgumentParser(description="Generation against PyTorch and CTranslate2.")
    parser.add_argument("--peers", required=True, help="python of the peers' environment")
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--model", default="base", help="bundled name")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plain-clips", type=int, default=16)
    parser.add_argument("--heads-clips", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    model = ji.load_model(options.model)
    peers = start_peers(options.peers, options.model, model)
    rows: list[Row] = []
    for name in options.case or CASES:
        clips = load_clips(model, getattr(options, f"{name}_clips"))
        peers.give(clips)
        for row in CASES[name](clips, peers, options.rounds):
            rows.append({"case": name, "model": options.model, **row})
            print(line(rows[-1]), flush=True)
    for peer in (peers.torch, peers.ctranslate2):
        peer.close()
    if options.json is not None:
        content = harness.provenance() | {"peers": peers.versions, "rounds": options.rounds}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**content, "rows": rows}, indent=2) + "\n")


def start_peers(python: str, name: str, model: ji.Whisper) -> Peers:
    """Workers that have loaded the same weights."""
    from peers.export import export_ctranslate2, export_model

    torch, ctranslate2 = Peer(python), Peer(python, "ctranslate2_worker.py")
    device = "cuda" if jax.devices()[0].platform == "gpu" else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        export_model(model, Path(folder))
        loaded = torch("load", folder=folder, device=device)
    with tempfile.TemporaryDirectory() as folder:
        export_ctranslate2(name, Path(folder))
        published = ctranslate2("load", folder=folder, device=device, threads=loaded["threads"])
    versions = loaded["versions"] | published["versions"]
    return Peers(torch, ctranslate2, {"threads": loaded["threads"], "versions": versions})


def load_clips(model: ji.Whisper, count: int) -> Clips:
    """Clips, evenly spread from the shortest to the longest."""
    rows = speech.spread(count)
    audio = [ji.load_audio(speech.FOLDER / row["path"]) for row in rows]
    mels = jnp.stack([ji.log_mel_spectrogram(clip, model.config.n_mels) for clip in audio])
    return Clips(model, mels, tuple(float(row["seconds"]) for row in rows))


def plain(clips: Clips, peers: Peers, rounds: int) -> list[Row]:
    """Greedy transcripts of clips, one by one and in batches."""
    numbers, rows = list(range(len(clips.lengths))), []
    for batch in BATCHES:
        ours = Ours(clips, batch)
        wanted = {"clips": numbers, "batch": batch}
        sides = {
            "transformers": Side(peers.torch, **wanted, max_new_tokens=MAX_NEW_TOKENS),
            "CTranslate2": Side(peers.ctranslate2, **wanted, prompt=clips.prompt),
        }
        first, *_ = (run() for run in (ours, *sides.values()))
        rates, own, *others = in_turn([matmul_rate, ours, *sides.values()], rounds)
        common = {
            "clips": len(numbers),
            "audio_seconds": sum(clips.lengths),
            "tokens": sum(map(len, ours.tokens)),
            "batch": batch,
            "ours_encode_seconds": statistics.median(ours.encoding[1:]),
            "ours_decode_seconds": statistics.median(ours.decoding[1:]),
            "first_call_seconds": first,
            "peak_bytes": harness.peak_bytes(),
            **floor(clips, ours.generated, rates, own),
        }
        for (name, side), theirs in zip(sides.items(), others, strict=True):
            texts, tokens = differing(ours.tokens, side.tokens)
            row = {"peer": name, "texts_that_differ": texts, "tokens_that_differ": tokens}
            if side.encoding:
                row["theirs_encode_seconds"] = statistics.median(side.encoding[1:])
            pair = summary(Pair(own, theirs))
            rows.append({**common, **row, **pair, "theirs_peak_bytes": side.peak})
    return rows


def heads(clips: Clips, peers: Peers, rounds: int) -> list[Row]:
    """A transcript of every clip with each head of the decoder zeroed."""
    ours = OurHeads(clips)
    first = ours()
    sides = {
        "generate": TheirHeads(peers.torch, ours, share_states=False),
        "generate, encoded once": TheirHeads(peers.torch, ours, share_states=True),
    }
    peers.torch("generate", clips=[0], max_new_tokens=MAX_WITHOUT_A_HEAD)
    rates, own, *others = in_turn([matmul_rate, ours, *sides.values()], rounds)
    written = [one for of_clip in ours.generated for one in of_clip]
    common = {
        "clips": len(clips.lengths),
        "audio_seconds": sum(clips.lengths),
        "interventions": len(ours.heads),
        "tokens": sum(len(one.tokens) for one in written),
        "first_call_seconds": first,
        "peak_bytes": harness.peak_bytes(),
        **floor(clips, written, rates, own),
    }
    return [
        {
            **common,
            "peer": name,
            "timed_transcripts": side.compared,
            "texts_that_differ": side.differ,
            **summary(Pair(own, theirs)),
            "theirs_peak_bytes": side.peak,
        }
        for (name, side), theirs in zip(sides.items(), others, strict=True)
    ]


def matmul_rate() -> float:
    """FLOP/s of a matrix product in the dtype that all sides compute in."""
    return harness.matmul_rate("float32", 3)


def floor(
    clips: Clips, written: Sequence[ji.Generated], rates: Sequence[float], own: Sequence[float]
) -> Row:
    """The FLOPs that our job needs, and how near its time is to theirs."""
    config = clips.model.config
    flops = len(clips.lengths) * (cost.encoder_flops(config) + cost.cross_flops(config))
    for one in written:
        chosen = len(one.tokens) + one.finished
        flops += cost.decoder_flops(config, len(one.prompt) + chosen - 1)
        flops += cost.unembed_flops(config, chosen)
    shares = [flops / rate / taken for rate, taken in zip(rates, own, strict=True)]
    return {
        "gflop": flops / 1e9,
        "matmul_gflops": statistics.median(rates) / 1e9,
        "share_of_floor": statistics.median(shares),
    }


def summary(pair: Pair) -> Row:
    """Both sides' seconds and their ratio."""
    return {
        "ratio": pair.ratio,
        "ours_seconds": statistics.median(pair.ours),
        "theirs_seconds": statistics.median(pair.theirs),
    }


def line(row: Row) -> str:
    """One row as a line of the tables in README.md."""
    sides = [row["ours_seconds"], row["theirs_seconds"]]
    if row["case"] == "plain":
        ours, theirs = (each / row["clips"] for each in sides)
        encode, decode = (
            row[f"ours_{part}_seconds"] / row["clips"] for part in ("encode", "decode")
        )
        clips = row.get("theirs_encode_seconds", 0) / row["clips"]
        rtf = " | ".join(f"{each / row['audio_seconds']:.3f}" for each in sides)
        rate = " | ".join(f"{row['tokens'] / each:.0f}/s" for each in sides)
        what = f"plain, {row['batch']} at once | {row['clips']}"
        apart = f" ({clips:.3f} + {theirs - clips:.3f})" if clips else ""
        times = (
            f"{ours:.3f} s ({encode:.3f} + {decode:.3f}) | {theirs:.3f} s{apart} | {rtf} | {rate}"
        )
        differ = f"{row['texts_that_differ']} texts, {row['tokens_that_differ']} tokens"
    else:
        runs = row["interventions"] * row["clips"]
        what = f"heads | {row['interventions']} × {row['clips']}"
        rate = " | ".join(f"{runs / each:.1f}/s" for each in sides)
        times = f"{sides[0]:.1f} s | {sides[1]:.0f} s | {rate}"
        differ = f"{row['texts_that_differ']} of {row['timed_transcripts']}"
    return (
        f"| {row['model']} {what} | {row['peer']} | {row['ratio']:.2f}× | {times} | {differ} | "
        f"{row['share_of_floor']:.0%} of {row['matmul_gflops']:.0f} GFLOP/s | "
        f"{row['first_call_seconds']:.1f} s | "
        f"{row['peak_bytes'] / 1e9:.2f} | {row['theirs_peak_bytes'] / 1e9:.2f} GB |"
    )


CASES: dict[str, Callable[[Clips, Peers, int], list[Row]]] = {"plain": plain, "heads": heads}

if __name__ == "__main__":
    main()
