"""Thousands of probes against a scikit-learn loop and a PyTorch loop, at equal loss.

    jaxasr-interp extract manifest.tsv --model base --out runs/base.zarr
    python benchmarks/probes.py --store runs/base.zarr --peers PEERS/bin/python [--json FILE]
    python benchmarks/probes.py --store runs/base.zarr --case parity

`speed`: K probes of one binary target over layers, penalties, folds and seeds, from arrays in
memory to the outputs of every validation and test example. The loops standardise, fit and predict
one probe at a time: 20 of them in every round, spread over the K and other ones each time, scaled
to K. All run in turns (A B C A B C …), warm; ratios are medians of the rounds' ratios; the first
call, with compilation, is apart. In the same line: the largest difference of a probe's training
loss from ours, and the rate of a 2048³ matrix product measured in turns with them.

`parity`: for six targets, every layer and penalty: the objective (mean loss and penalty) of our
probe of all examples less that of scikit-learn's, which runs in float64 until its gradient is below
1e-7.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
import jax
import numpy as np
from harness import Pair, Peer, in_turn
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import jaxasr_interp as ji
from jaxasr_interp.probes.labels import parse_target, relabel
from jaxasr_interp.probes.splits import parts

SOUNDS = (
    "Baby cry",
    "Chainsaw",
    "Clock tick",
    "Dog bark",
    "Fire crackling",
    "Helicopter",
    "Person sneeze",
    "Rain",
    "Rooster",
    "Sea waves",
)
VARIABLE = "encoder.resid_post.mean"
TARGETS = (
    "gender",
    "speech=kind:yes=read_en|gender|accent;no=nonspeech",
    "accent=accent:Indian=*(Indian);other=*(Chinese)|*(American)|American (Boston)",
    "language=lang:English=en;other=de|es|fr|pt",
    "loops=label:yes=*loops;no=nonspeech*",
    "sound=label:" + ";".join(f"{name}=nonspeech?{name}*" for name in SOUNDS),
)
# How many layers, penalties and seeds make about K probes, with five folds and all examples.
GRIDS = {10: (1, 2, 1), 100: (6, 3, 1), 1000: (6, 5, 7), 10_000: (6, 10, 33)}
SAMPLE = 20

type Row = dict[str, Any]
Cell = tuple[int, float, np.ndarray, np.ndarray, tuple[int, int, int, int]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Probes against scikit-learn and PyTorch.")
    parser.add_argument("--store", required=True, help="activations of the corpus")
    parser.add_argument("--peers", help="python of the peers' environment; without it, no PyTorch")
    parser.add_argument("--case", choices=("speed", "parity"), default="speed")
    parser.add_argument("--probes", type=int, action="append", choices=tuple(GRIDS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    dataset = ji.open_activations(options.store)
    x = dataset[VARIABLE].transpose("layer", "clip", ...).to_numpy()
    rows: list[Row] = []
    if options.case == "parity":
        measured = (parity(x, dataset, target) for target in TARGETS)
    else:
        labels = [str(label) for label in dataset.gender.to_numpy()]
        wanted = options.probes or GRIDS
        measured = (speed(x, labels, k, options.peers, options.rounds) for k in wanted)
    for row in measured:
        rows.append(row)
        print("  ".join(f"{key} {_short(value)}" for key, value in row.items()), flush=True)
    if options.json is not None:
        content = {**harness.provenance(), "case": options.case, "rows": rows}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=2) + "\n")


def speed(x: np.ndarray, labels: list[str], k: int, python: str | None, rounds: int) -> Row:
    """About K probes of one target, ours and the loops."""
    n_layers, n_penalties, n_seeds = GRIDS[k]
    known = np.array([bool(label) for label in labels])
    x, named = x[:n_layers, known], [label for label in labels if label]
    penalties = [float(10.0**power) for power in np.linspace(-4, 0, n_penalties)]
    options = ji.FitOptions(l2=penalties, seeds=range(n_seeds), shuffled=False)
    found: dict[str, ji.Probes] = {}
    counts: list[int] = []

    def ours() -> float:
        started = time.perf_counter()
        found.update(
            ji.fit_probes(
                x,
                named,
                options=options,
                on_progress=lambda done, total, phase: counts.append(total),
            )
        )
        return time.perf_counter() - started

    first = ours()
    probes, total = found["target"], counts[-1]
    cells = _cells(probes, n_layers)
    order = np.random.default_rng(0).permutation(len(cells))
    turn = iter(range(10**9))
    gaps: dict[str, list[float]] = {"scikit-learn": [], "PyTorch": []}

    def sample() -> list[Cell]:
        start = next(turn) * SAMPLE
        return [cells[order[i % len(cells)]] for i in range(start, start + SAMPLE)]

    def compared(name: str, chosen: list[Cell], losses: Sequence[float]) -> None:
        for (*_, place), loss in zip(chosen, losses, strict=True):
            gaps[name].append(abs(loss - float(probes.held_out.train_loss[place])))

    def loop() -> float:
        chosen = sample()
        started = time.perf_counter()
        fitted = [_sklearn(x, probes.target.labels, cell) for cell in chosen]
        taken = time.perf_counter() - started
        compared("scikit-learn", chosen, [_loss(model, *data) for model, *data in fitted])
        return taken * total / SAMPLE

    sides = [lambda: harness.matmul_rate("float32", 3), ours, loop]
    peer = None
    if python is not None:
        peer = Peer(python, "probing.py")
        with tempfile.TemporaryDirectory() as folder:
            np.savez(Path(folder) / "data.npz", x=x, labels=probes.target.labels)
            peer("data", file=str(Path(folder) / "data.npz"))

        def torch_loop() -> float:
            chosen = sample()
            wanted = [(layer, l2, rows.tolist()) for layer, l2, rows, *_ in chosen]
            answer = peer("fit", probes=wanted)
            compared("PyTorch", chosen, answer["losses"])
            return answer["seconds"] * total / SAMPLE

        sides.append(torch_loop)
    loop()
    rates, own, *others = in_turn(sides, rounds)
    if peer is not None:
        peer.close()
    row: Row = {
        "probes": total,
        "examples": x.shape[1],
        "ours_seconds": statistics.median(own),
        "ms_a_probe": 1e3 * statistics.median(own) / total,
        "first_call_seconds": first,
        "matmul_gflops": statistics.median(rates) / 1e9,
    }
    for name, theirs in zip(gaps, others, strict=False):
        row |= {
            f"{name} ratio": Pair(own, theirs).ratio,
            f"{name} seconds": statistics.median(theirs),
            f"{name} loss difference": max(gaps[name]),
        }
    return row


def _cells(probes: ji.Probes, n_layers: int) -> list[Cell]:
    """Every cross-validated probe: layer, penalty, who trains, who is predicted, its place."""
    return [
        (layer, l2, np.flatnonzero(trains), np.flatnonzero(~trains), (layer, i, seed, fold))
        for seed, folds in enumerate(probes.folds)
        for fold in range(folds.max() + 1)
        for trains, _ in [parts(folds, fold, folds.max() + 1)]
        for layer in range(n_layers)
        for i, l2 in enumerate(probes.options.l2)
    ]


def _sklearn(x: np.ndarray, labels: np.ndarray, cell: Cell) -> tuple[Any, np.ndarray, np.ndarray]:
    layer, l2, trains, others, _ = cell
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=1 / (l2 * len(trains)), max_iter=1000)
    )
    model.fit(x[layer, trains], labels[trains])
    model.decision_function(x[layer, others])
    return model, x[layer, trains], labels[trains]


def _loss(model: Any, x: np.ndarray, labels: np.ndarray) -> float:
    return float(log_loss(labels, model.predict_proba(x.astype(np.float64))))


def parity(x: np.ndarray, dataset: Any, text: str) -> Row:
    """How far our objective is from scikit-learn's, over all layers and penalties."""
    name, column, patterns = parse_target(text)
    labels = relabel([str(value) for value in dataset[column].to_numpy()], patterns, 5)
    known = np.array([bool(label) for label in labels])
    named = [label for label in labels if label]
    gaps = [gap for l2 in ji.FitOptions().l2 for gap in _gaps(x[:, known], named, l2)]
    return {
        "target": name,
        "classes": len(set(named)),
        "examples": len(named),
        "probes": len(gaps),
        "largest": max(gaps),
        "least": min(gaps),
    }


def _gaps(x: np.ndarray, labels: list[str], l2: float) -> list[float]:
    """Our objective in each layer less scikit-learn's."""
    options = ji.FitOptions(l2=[l2], shuffled=False)
    probes = ji.fit_probes(x, labels, options=options)["target"]
    numbers = probes.target.labels.astype(int)
    gaps = []
    for layer, features in enumerate(x.astype(np.float64)):
        scaler = StandardScaler().fit(features)
        scaled = np.asarray(scaler.transform(features))
        model = LogisticRegression(C=1 / (l2 * len(numbers)), max_iter=10_000, tol=1e-7)
        model.fit(scaled, numbers)
        kernel, bias = (np.asarray(leaf[layer]) for leaf in jax.tree.leaves(probes.probe))
        kernel = kernel.astype(np.float64) * np.asarray(scaler.scale_)
        shift = np.asarray(scaler.mean_) / np.asarray(scaler.scale_)
        objectives = [
            _loss_of(weights, bias, scaled, numbers) + l2 / 2 * np.square(weights).sum()
            for weights, bias in (
                (kernel, bias + kernel @ shift),
                (np.asarray(model.coef_), np.asarray(model.intercept_)),
            )
        ]
        gaps.append(float(objectives[0] - objectives[1]))
    return gaps


def _loss_of(kernel: np.ndarray, bias: np.ndarray, x: np.ndarray, labels: np.ndarray) -> float:
    outputs = x @ kernel.T + bias
    if outputs.shape[1] == 1:
        outputs = np.concatenate([np.zeros_like(outputs), outputs], axis=1)
    log_p = outputs - np.logaddexp.reduce(outputs, axis=1, keepdims=True)
    return -float(log_p[np.arange(len(labels)), labels].mean())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
