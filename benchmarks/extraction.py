"""Extraction in × real time against PyTorch with forward hooks that pool.

    benchmarks/peers/environment.sh [FOLDER]
    python benchmarks/extraction.py --peers FOLDER/bin/python [--case encoder] [--json FILE]

Both sides start from the same FLAC files: they are decoded, turned into spectrograms and run
through the model; `resid_post` of every layer is averaged over the frames that hold sound, and in
the case `both` also read at the end-of-text token, the text given. Ours ends with the Zarr store,
theirs with arrays in memory. The peer is `transformers` with SDPA, `WhisperFeatureExtractor` as it
comes, a hook on every layer that pools at once, and a decoder without unembedding.

Each side runs at the best of its batch sizes, found in a run of each. Then both run in turns (A B A
B …), warm; the ratio is the median of the rounds' ratios. In the same line: the largest difference
between their activations and ours, as a share of the largest activation of that layer; the share of
the floor, the job's FLOPs at the rate of a 2048³ matrix product measured in turns with it. Peak
memory is of the process, which holds the model; ours includes compilation.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import jax
import numpy as np
import speech
from harness import Pair, Peer, in_turn

import jaxasr_interp as ji
from jaxasr_interp.patching import cost

BATCHES = (1, 4, 8)
SITES = {
    "encoder": ["encoder.resid_post:mean"],
    "both": ["encoder.resid_post:mean", "decoder.resid_post:end"],
}
VARIABLES = {"encoder": "encoder.resid_post.mean", "decoder": "decoder.resid_post.end"}

type Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Work:
    """What both sides extract.

    Attributes:
        case: key of `SITES`.
        model: with its tokenizer.
        clips: the manifest's rows.
        folder: for what they write.
    """

    case: str
    model: ji.Whisper
    clips: list[dict[str, str]]
    folder: Path

    @property
    def paths(self) -> list[str]:
        """Of the files."""
        return [str(speech.FOLDER / clip["path"]) for clip in self.clips]

    @property
    def tokens(self) -> list[list[int]]:
        """What the decoder is given in each clip."""
        tokenizer = self.model.tokenizer
        assert tokenizer is not None
        texts = (tokenizer.encode(" " + clip["text"].strip()) for clip in self.clips)
        return [[*tokenizer.prompt("en"), *text, tokenizer.end_of_text] for text in texts]


class Ours:
    """Our extraction: from files to a store."""

    def __init__(self, work: Work, batch: int):
        self.work, self.batch = work, batch

    @property
    def out(self) -> Path:
        """The store."""
        return self.work.folder / "ours.zarr"

    def __call__(self) -> float:
        """Run once; return its seconds."""
        rows = [
            {"path": path, "text": clip["text"], "lang": "en"}
            for path, clip in zip(self.work.paths, self.work.clips, strict=True)
        ]
        started = time.perf_counter()
        ji.extract(
            self.work.model,
            rows,
            self.out,
            sites=SITES[self.work.case],
            overwrite=True,
            options=ji.ExtractOptions(text="text", random_seed=None, batch_size=self.batch),
        )
        return time.perf_counter() - started


class Theirs:
    """The peer's extraction: from files to arrays."""

    def __init__(self, work: Work, peer: Peer, batch: int):
        self.work, self.peer, self.batch, self.peak = work, peer, batch, 0

    @property
    def out(self) -> Path:
        """Its arrays."""
        return self.work.folder / "theirs.npz"

    def __call__(self) -> float:
        """Run once; return its seconds."""
        answer = self.peer(
            "extract",
            paths=self.work.paths,
            tokens=self.work.tokens if self.work.case == "both" else None,
            batch=self.batch,
            file=str(self.out),
        )
        self.peak = max(self.peak, answer["peak_bytes"])
        return answer["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Extraction against PyTorch hooks.")
    parser.add_argument("--peers", required=True, help="python of the peers' environment")
    parser.add_argument("--case", action="append", choices=SITES)
    parser.add_argument("--model", default="base", help="bundled name")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    model = ji.load_model(options.model)
    peer, loaded = start_peer(options.peers, model)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in options.case or SITES:
            work = Work(case, model, speech.spread(options.clips), Path(folder))
            rows.append({"model": options.model, **measure(work, peer, options.rounds)})
            print(line(rows[-1]), flush=True)
    peer.close()
    if options.json is not None:
        content = harness.provenance() | {"peers": loaded, "rounds": options.rounds}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**content, "rows": rows}, indent=2) + "\n")


def start_peer(python: str, model: ji.Whisper) -> tuple[Peer, Row]:
    """A worker that has loaded the same weights."""
    from peers.export import export_model

    peer = Peer(python)
    device = "cuda" if jax.devices()[0].platform == "gpu" else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        export_model(model, Path(folder))
        loaded = peer("load", folder=folder, device=device)
    return peer, {"threads": loaded["threads"], "versions": loaded["versions"]}


def measure(work: Work, peer: Peer, rounds: int) -> Row:
    """One case: the best batch of each side, and then both in turns."""
    ours, first = [Ours(work, batch) for batch in BATCHES], []
    theirs = [Theirs(work, peer, batch) for batch in BATCHES]
    for side in (*ours, *theirs):
        first.append(side())
    tuned = in_turn([*ours, *theirs], 1)
    best = tuned[: len(BATCHES)].index(min(tuned[: len(BATCHES)]))
    their_best = tuned[len(BATCHES) :].index(min(tuned[len(BATCHES) :]))
    mine, other = ours[best], theirs[their_best]
    rates, own, their = in_turn([matmul_rate, mine, other], rounds)
    pair = Pair(own, their)
    flops = work_flops(work)
    return {
        "case": work.case,
        "clips": len(work.clips),
        "audio_seconds": sum(float(clip["seconds"]) for clip in work.clips),
        "batch": mine.batch,
        "theirs_batch": other.batch,
        "batches_seconds": dict(zip(BATCHES, (s for (s,) in tuned[: len(BATCHES)]), strict=True)),
        "theirs_batches_seconds": dict(
            zip(BATCHES, (s for (s,) in tuned[len(BATCHES) :]), strict=True)
        ),
        "ratio": pair.ratio,
        "ours_seconds": statistics.median(own),
        "theirs_seconds": statistics.median(their),
        "largest_difference": largest_difference(mine.out, other.out),
        "gflop": flops / 1e9,
        "matmul_gflops": statistics.median(rates) / 1e9,
        "share_of_floor": statistics.median(
            flops / rate / taken for rate, taken in zip(rates, own, strict=True)
        ),
        "first_call_seconds": first[0],
        "peak_bytes": harness.peak_bytes(),
        "theirs_peak_bytes": other.peak,
    }


def work_flops(work: Work) -> float:
    """The FLOPs that the job needs."""
    config = work.model.config
    flops = len(work.clips) * cost.encoder_flops(config)
    if work.case == "both":
        flops += len(work.clips) * cost.cross_flops(config)
        flops += sum(cost.decoder_flops(config, len(tokens)) for tokens in work.tokens)
    return flops


def largest_difference(ours: Path, theirs: Path) -> float:
    """Between the activations of both, as a share of the largest activation of the layer."""
    stored, differences = ji.open_activations(ours), []
    with np.load(theirs) as arrays:
        for stack, values in arrays.items():
            mine = stored[VARIABLES[stack]].values
            scale = np.abs(values).max(axis=(0, 2))
            differences.append((np.abs(mine - values).max(axis=(0, 2)) / scale).max())
    return float(max(differences))


def matmul_rate() -> float:
    """FLOP/s of a matrix product in the dtype that both sides compute in."""
    return harness.matmul_rate("float32", 3)


def line(row: Row) -> str:
    """One row as a line of the tables in README.md."""
    sides = [row["ours_seconds"], row["theirs_seconds"]]
    real_time = " | ".join(f"{row['audio_seconds'] / each:.1f}×" for each in sides)
    clips = " | ".join(f"{row['clips'] / each:.2f}/s" for each in sides)
    return (
        f"| {row['model']}, {row['case']} | {row['clips']} | **{row['ratio']:.2f}×** | "
        f"{real_time} | {clips} | {row['batch']}, {row['theirs_batch']} | "
        f"{row['largest_difference']:.1e} | "
        f"{row['share_of_floor']:.0%} of {row['matmul_gflops']:.0f} GFLOP/s | "
        f"{row['first_call_seconds']:.1f} s | "
        f"{row['peak_bytes'] / 1e9:.2f}, {row['theirs_peak_bytes'] / 1e9:.2f} GB |"
    )


if __name__ == "__main__":
    main()
