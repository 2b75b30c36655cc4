"""The sweep of a data set against a loop of single sweeps, clips of unequal length.

    python benchmarks/datasets.py CLIPS.tsv [--model base] [--clips 24] [--rounds 5]
        [--peers PYTHON] [--json FILE]

Both sweep `resid_pre` of every layer and position for the last word of each clip's text against
noise, warm, encodes included; in turn (A B A B …). The loop takes each clip at its own length, its
spectrograms ready; the data set reads audio, shares programs between lengths and writes its store.
`sweep phase` is the time in which patches run, `whole call` also finds the texts and hashes all
inputs. `runner` is the share of the sweep phase in which no unit is computed. In the same line: the
largest difference of the log-probabilities as a share of the effect. With `--peers` also against
PyTorch hooks on the whole model: of each clip some patches run, and stand for all.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import harness
import jax.numpy as jnp
import numpy as np

import jaxasr_interp as ji
from jaxasr_interp.generation.utterances import text_tokens
from jaxasr_interp.patching.dataset_work import DatasetWork
from jaxasr_interp.speech.noise import noise_like
from jaxasr_interp.speech.tables import read_manifest

PATCHES_OF_HOOKS = 3
OPTIONS = ji.DatasetOptions(text="text", metrics=("log_prob",), where={"lang": ["en"]})


def main() -> None:
    parser = argparse.ArgumentParser(description="Data-set sweeps against single ones.")
    parser.add_argument("table", type=Path, help="clips with columns path, text and lang")
    parser.add_argument("--model", default="base")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", help="python of the peers' environment")
    parser.add_argument("--json", type=Path, help="also write the results here")
    given = parser.parse_args()
    model = ji.load_model(given.model)
    rows = spread(readable_rows(given.table), given.clips)
    with tempfile.TemporaryDirectory() as folder:
        first = DataSet(model, rows, Path(folder) / "first")
        loop = Loop(model, first.dataset)
        difference = loop.compare()
        pairs = [
            (DataSet(model, rows, Path(folder) / str(i)), loop.seconds())
            for i in range(given.rounds)
        ]
    hooked = {} if given.peers is None else against_hooks(model, loop, given.peers)
    lengths = sorted(first.dataset.length.values.tolist())
    row = {
        "model": given.model,
        "clips": len(lengths),
        "lengths": lengths,
        "patches": loop.patches,
        "patches_per_second": loop.patches / statistics.median(a.phase for a, _ in pairs),
        "loop_patches_per_second": loop.patches / statistics.median(b for _, b in pairs),
        "sweep_phase": statistics.median(b / a.phase for a, b in pairs),
        "whole_call": statistics.median(b / a.whole for a, b in pairs),
        "runner": statistics.median(1 - a.units / a.phase for a, _ in pairs),
        "difference": difference,
        "first_call_seconds": first.whole,
        **hooked,
    }
    if hooked:
        row["times_hooks"] = row["patches_per_second"] / hooked["hooks_patches_per_second"]
    print(
        f"{len(lengths)} clips of {lengths[0]} to {lengths[-1]} tokens, "
        f"{row['patches']} patches: {row['patches_per_second']:.0f} patches/s, "
        f"{row['sweep_phase']:.3f} x the loop ({row['whole_call']:.3f} x with the whole call), "
        f"runner {100 * row['runner']:.2f}%, difference {difference:.1e} of the effect, "
        f"first call {first.whole:.0f} s"
        + (f", {row['times_hooks']:.0f} x hooks" if hooked else "")
    )
    if given.json is not None:
        content = {**harness.provenance(), "rounds": given.rounds, "rows": [row]}
        given.json.write_text(json.dumps(content, indent=2) + "\n")


def against_hooks(model: ji.Whisper, loop: "Loop", python: str) -> dict[str, float]:
    """Patches a second of PyTorch hooks, each clip's clean run included, and how they differ."""
    from peers.export import export_model

    rng, peer = np.random.default_rng(0), harness.Peer(python)
    seconds, worst = 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        export_model(model, Path(folder))
        peer("load", folder=folder, device="cpu", dtype=str(model.dtype))
        for (plan, clean, corrupted, metric), result in zip(loop.inputs, loop.results, strict=True):
            file = Path(folder) / "inputs.npz"
            np.savez(
                file,
                clean_mel=np.asarray(clean.mel),
                corrupted_mel=np.asarray(corrupted.mel),
                clean_tokens=np.asarray(clean.tokens),
                corrupted_tokens=np.asarray(corrupted.tokens),
                token=metric.token,
            )
            peer("inputs", file=str(file))
            layers, positions = result.patched[0].shape
            some = rng.integers((layers, positions), size=(PATCHES_OF_HOOKS, 2)).tolist()
            answer = peer("run", method="hooks_model", site="resid_pre", cells=some)
            each = answer["sweep_seconds"] / len(some)
            seconds += answer["clean_seconds"] + each * plan.runs
            effect = abs(float(result.clean[0] - result.corrupted[0]))
            theirs = [result.patched[0, layer, pos] for layer, pos in some]
            worst = max(worst, float(np.abs(np.subtract(answer["values"], theirs)).max()) / effect)
    peer.close()
    return {"hooks_patches_per_second": loop.patches / seconds, "hooks_difference": worst}


def readable_rows(table: Path) -> list[dict[str, Any]]:
    """Rows of a table, with whole paths and only the columns that are needed."""
    return [
        {"path": str(table.parent / row["path"]), "text": row["text"], "lang": row["lang"]}
        for row in read_manifest(table)
        if row["text"].strip() and row["lang"] == "en" and len(row["text"].split()) > 1
    ]


def spread(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Some rows, evenly over the lengths of their texts."""
    ordered = sorted(rows, key=lambda row: len(row["text"]))
    return [ordered[i] for i in np.linspace(0, len(ordered) - 1, count).round().astype(int)]


class DataSet:
    """One data-set sweep, timed."""

    def __init__(self, model: ji.Whisper, rows: list[dict[str, Any]], out: Path):
        self.units, run = 0.0, DatasetWork.run
        phases: dict[str, list[float]] = {}

        def timed(work: DatasetWork, *unit: Any) -> Any:
            started = time.perf_counter()
            arrays = run(work, *unit)
            self.units += time.perf_counter() - started
            return arrays

        def on_progress(done: int, total: int, phase: str) -> None:
            phases.setdefault(phase, []).append(time.perf_counter())

        started = time.perf_counter()
        with mock.patch.object(DatasetWork, "run", timed):
            found = ji.sweep_dataset(model, rows, out, options=OPTIONS, on_progress=on_progress)
        self.whole = time.perf_counter() - started
        self.phase = phases["patches"][-1] - phases["patches"][0]
        self.dataset = ji.open_dataset(found.path).load()


class Loop:
    """The same sweeps, one call after the other."""

    def __init__(self, model: ji.Whisper, dataset: Any):
        self.model, self.dataset = model, dataset
        self.inputs = [self._inputs(i) for i in range(dataset.sizes["clip"])]
        self.patches = sum(plan.runs for plan, _, _, _ in self.inputs)
        self.results = [self._sweep(*one) for one in self.inputs]

    def _inputs(self, i: int) -> tuple[ji.SweepPlan, ji.Utterance, ji.Utterance, Any]:
        row, model = self.dataset.isel(clip=i), self.model
        assert model.tokenizer is not None
        prompt = model.tokenizer.prompt("en")
        tokens = jnp.asarray([*prompt, *text_tokens(model, str(row.text.item()))])
        tokens = tokens[: int(row.length)]
        audio = ji.load_audio(str(row.path.item()))
        clips = (audio, noise_like(audio, int(row.noise_seed)))
        mels = [ji.log_mel_spectrogram(one, n_mels=model.config.n_mels) for one in clips]
        clean, corrupted = (ji.Utterance(jnp.asarray(mel), tokens) for mel in mels)
        plan = ji.plan_sweep(model, tokens=tokens)
        return plan, clean, corrupted, ji.metrics.log_prob(int(row.target_token))

    def _sweep(self, plan: ji.SweepPlan, clean: Any, corrupted: Any, metric: Any) -> Any:
        return ji.activation_patching(
            self.model, plan, clean=clean, corrupted=corrupted, metric=metric
        )

    def seconds(self) -> float:
        """Sweep every clip once."""
        started = time.perf_counter()
        for one in self.inputs:
            self._sweep(*one)
        return time.perf_counter() - started

    def compare(self) -> float:
        """Largest difference from the data set, as a share of each clip's effect."""
        worst = 0.0
        for i, result in enumerate(self.results):
            ours = self.dataset.patched.values[i, 0, 0, :, : result.patched.shape[-1]]
            effect = abs(float(result.clean[0] - result.corrupted[0]))
            worst = max(worst, float(np.abs(ours - result.patched[0]).max()) / effect)
        return worst


if __name__ == "__main__":
    main()
