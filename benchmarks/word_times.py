"""When words are said, against synthetic sentences whose word times are known.

    pip install espeakng-loader
    python benchmarks/word_times.py [--model base] [--peer PYTHON] [--clips TABLE] [--json FILE]

Each sentence is spoken four ways: word by word with nothing between (`joined`), with 30 to 70 ms
between (`tight`), with 0.2 to 0.8 s between (`pauses`), and in one go (`running`), where espeak-ng
says where words start, not where they end. Each is heard as it is and with white noise 10 dB below
it. The text is given; `raw` are openai/whisper's times, `refined` ours. `--peer` is an environment
with faster-whisper, which writes its own text: what counts are the words that it has right.
`--clips` is a table of English recordings with their `text`, for which no true times are known: two
checkpoints, one of which attends early and one late, are asked for the starts of their words.

A line gives the median and 90th percentile of the errors of starts and ends in seconds, and the
mean intersection over union of the times.
"""

import argparse
import difflib
import itertools
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import Peer, provenance
from peers.export import export_ctranslate2
from synthesizer import Spoken, Synthesizer, with_noise

import jaxasr_interp as ji
from jaxasr_interp.speech.clips import find_clips
from jaxasr_interp.speech.positions import plain_word

SENTENCES = (
    "the pilot circled above the frozen airport",
    "my sister grows tomatoes behind the garage",
    "a broken lamp stood beside the empty desk",
    "they painted every window frame dark green",
    "the visitors walked slowly along the river",
    "nobody expected such a generous offer",
    "our train leaves early tomorrow morning",
    "the blacksmith hammered the glowing iron",
    "several witnesses described the same vehicle",
    "warm bread smells wonderful on cold days",
    "the orchestra practiced until late evening",
    "his daughter collects stamps from distant countries",
    "fishermen mended their nets before dawn",
    "the library closed because of heavy flooding",
    "a curious fox crossed the busy highway",
    "she folded the blanket and switched off the light",
    "the mechanic replaced both front tires",
    "hungry birds gathered around the wooden table",
    "the mayor promised cheaper bus tickets",
    "clever students solved the puzzle within minutes",
)
VOICES = ("en-us", "en-gb-scotland+f3", "en+m2", "en-gb-x-rp+f1", "en-us+m7")
KINDS = ("joined", "tight", "pauses", "running")
NOISE_DECIBELS = 10
MODELS = ("tiny.en", "base")
Times = tuple[np.ndarray, np.ndarray]


def speak(synthesizer: Synthesizer, index: int, kind: str) -> Spoken:
    words, voice = SENTENCES[index].split(), VOICES[index % len(VOICES)]
    rng, between = np.random.default_rng(index), len(words) - 1
    match kind:
        case "running":
            return synthesizer.sentence(words, voice)
        case "pauses":
            gaps = rng.uniform(0.2, 0.8, between)
        case "tight":
            gaps = rng.uniform(0.03, 0.07, between)
        case _:
            gaps = np.zeros(between)
    return synthesizer.single_words(words, voice, [0.3, *gaps.tolist(), 0.3])


def our_times(model: ji.Whisper, audio: np.ndarray, words: Sequence[str]) -> dict[str, Times]:
    utterance = ji.make_utterance(model, audio, text=" ".join(words), language="en")
    times = {}
    for method in ("raw", "refined"):
        found = ji.align_words(model, utterance, refine=method == "refined")
        starts, ends = np.array([word.seconds for word in found]).T
        times[method] = (starts, ends)
    return times


def their_times(peer: Peer, audio: np.ndarray, words: Sequence[str]) -> Times:
    """Starts and ends of the words that the peer has right; NaN for the others."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "clip.npy", audio)
        found = peer("words", file=str(Path(folder) / "clip.npy"))["words"]
    times = np.full((2, len(words)), np.nan)
    heard = [plain_word(text) for text, *_ in found]
    matches = difflib.SequenceMatcher(None, heard, list(words), autojunk=False)
    for theirs, ours, size in matches.get_matching_blocks():
        for i in range(size):
            times[:, ours + i] = found[theirs + i][1:]
    return times[0], times[1]


def summarise(clips: Sequence[Spoken], times: Sequence[Times]) -> dict[str, Any]:
    true = np.concatenate([np.stack([clip.starts, clip.ends]) for clip in clips], 1)
    found = np.concatenate([np.stack(one) for one in times], 1)
    both = np.minimum(true[1], found[1]) - np.maximum(true[0], found[0])
    either = np.maximum(true[1], found[1]) - np.minimum(true[0], found[0])
    summary: dict[str, Any] = {}
    for side, errors in zip(("start", "end"), np.abs(true - found), strict=True):
        known = errors[~np.isnan(errors)]
        if len(known):
            summary[side] = [float(x) for x in np.percentile(known, (50, 90))]
            summary["words"] = len(known)
    if "end" in summary:
        summary["iou"] = float(np.nanmean(np.maximum(both, 0) / either))
    return summary


def benchmark(name: str, clips: dict[str, list[Spoken]], python: str | None) -> Iterator[Any]:
    model = ji.load_model(name)
    peer = None
    if python:
        peer = Peer(python, "faster_whisper_worker.py")
        with tempfile.TemporaryDirectory() as folder:
            export_ctranslate2(name, Path(folder))
            peer("load", folder=folder)
    for kind, spoken in clips.items():
        for noise in (None, NOISE_DECIBELS):
            times: dict[str, list[Times]] = {}
            for seed, clip in enumerate(spoken):
                audio = clip.audio if noise is None else with_noise(clip.audio, noise, seed)
                found = our_times(model, audio, clip.words)
                if peer is not None:
                    found["faster-whisper"] = their_times(peer, audio, clip.words)
                for method, one in found.items():
                    times.setdefault(method, []).append(one)
            for method, each in times.items():
                summary = summarise(spoken, each)
                yield {
                    "model": name,
                    "kind": kind,
                    "noise_db": noise,
                    "method": method,
                    **summary,
                }
    if peer is not None:
        peer.close()


def disagreement(table: Path) -> Iterator[Any]:
    """How far apart the checkpoints say that the words of recordings start."""
    clips = find_clips(table)
    starts: dict[tuple[str, str], list[np.ndarray]] = {}
    for name in MODELS:
        model = ji.load_model(name)
        for i, row in enumerate(clips.rows):
            found = our_times(model, clips.read(i), row["text"].capitalize().split())
            for method, (start, _) in found.items():
                starts.setdefault((method, name), []).append(start)
    for method in ("raw", "refined"):
        one, other = (np.concatenate(starts[method, name]) for name in MODELS)
        apart = np.percentile(np.abs(one - other), (50, 90))
        yield {
            "model": " against ".join(MODELS),
            "kind": f"{len(clips.rows)} recordings",
            "noise_db": None,
            "method": method,
            "start": [float(x) for x in apart],
            "words": len(one),
        }


def as_line(result: dict[str, Any]) -> str:
    noise = f"{result['noise_db']} dB noise" if result["noise_db"] else "clean"
    errors = [
        f"{side} {result[side][0]:.3f} / {result[side][1]:.3f} s"
        for side in ("start", "end")
        if side in result
    ]
    overlap = [f"IoU {result['iou']:.2f}"] if "iou" in result else []
    label = f"{result['model']:8} {result['kind']:8} {noise:12} {result['method']:15}"
    return f"{label} {', '.join([*errors, *overlap])} ({result['words']} words)"


def main() -> None:
    parser = argparse.ArgumentParser(description="When words are said, against known times.")
    parser.add_argument("--model", action="append", choices=MODELS)
    parser.add_argument("--kind", action="append", choices=KINDS)
    parser.add_argument("--peer", help="interpreter of an environment with faster-whisper")
    parser.add_argument("--clips", type=Path, help="table of recordings and their text")
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    synthesizer = Synthesizer()
    clips = {
        kind: [speak(synthesizer, i, kind) for i in range(len(SENTENCES))]
        for kind in options.kind or KINDS
    }
    runs = [benchmark(name, clips, options.peer) for name in options.model or MODELS]
    if options.clips:
        runs.append(disagreement(options.clips))
    results = []
    for result in itertools.chain(*runs):
        print(as_line(result), flush=True)
        results.append(result)
    if options.json:
        content = {"provenance": provenance(), "results": results}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
