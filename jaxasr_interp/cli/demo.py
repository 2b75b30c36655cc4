"""The demo: two spoken sentences that differ in one word, and activations that decide it."""

import time
from importlib import resources
from pathlib import Path

import numpy as np
from rich.console import Console

from jaxasr_interp.checkpoint.load import load_model
from jaxasr_interp.generation.word_times import align_words
from jaxasr_interp.lens.logit import LogitLens, logit_lens
from jaxasr_interp.model.run import decode, encode_utterance
from jaxasr_interp.model.whisper import Whisper, require_tokenizer
from jaxasr_interp.patching import metrics
from jaxasr_interp.patching.contrast import Contrast, find_contrast
from jaxasr_interp.patching.planning import PlanOptions, plan_sweep
from jaxasr_interp.patching.result import SweepResult
from jaxasr_interp.patching.sweep import activation_patching
from jaxasr_interp.report.plots import (
    axis_labels,
    place,
    plot_lens,
    plot_sweep,
    plot_timeline,
    save,
    share,
)
from jaxasr_interp.report.tables import lens_table, sweep_table
from jaxasr_interp.runtime.store import reserve, save_dataset, together
from jaxasr_interp.speech.audio import load_audio
from jaxasr_interp.speech.positions import FRAMES_PER_SECOND

MODEL = "tiny.en"
SITES = ("resid_pre", "cross_attn_out")
CLEAN, CORRUPTED = "grass.flac", "glass.flac"


def run_demo(out: Path, console: Console) -> None:
    """Transcribe both clips, show the lens and the sweeps, write Zarr stores and PNGs.

    Args:
        out: folder for the results; those of an earlier demo are replaced.
        console: console for the output.

    Raises:
        InputError: the weights of `tiny.en` are not installed, or the results cannot be written.
    """
    reserve(out / "lens.zarr", overwrite=True)
    start = time.perf_counter()
    model = load_model(MODEL)
    tokenizer = require_tokenizer(model)
    data = resources.files("jaxasr_interp") / "data"
    with resources.as_file(data / CLEAN) as path:
        clean = load_audio(path)
    with resources.as_file(data / CORRUPTED) as path:
        corrupted = load_audio(path)
    contrast = find_contrast(model, clean, corrupted, sites=("ln_final",))
    labels = axis_labels(tokenizer, contrast.tokens)
    target, other = axis_labels(tokenizer, [contrast.target, contrast.other])
    console.print(f"{CLEAN}:  {contrast.clean_text}\n{CORRUPTED}:  {contrast.corrupted_text}\n")

    states = encode_utterance(model, contrast.clean).states
    run = decode(model, contrast.tokens, states, sites="resid_post")
    lens = logit_lens(model, run)
    console.print(lens_table(lens, tokenizer, contrast.tokens))
    with together(out):
        save_dataset(
            lens.to_dataset().assign_coords(token=("pos", labels)),
            out / "lens.zarr",
            model,
            overwrite=True,
        )
        title = f"logit lens of {MODEL} hearing {target!r}"
        save(plot_lens(lens, tokenizer, labels, title), out / "lens.png")

        sweeps = {}
        for site in SITES:
            plan = plan_sweep(model, tokens=contrast.tokens, site=site)
            metric = metrics.logit_diff(contrast.target, contrast.other)
            sweep = activation_patching(
                model, plan, clean=contrast.clean, corrupted=contrast.corrupted, metric=metric
            )
            recovered = share(sweep, "logit_diff")
            console.print(sweep_table(recovered, labels, most=3))
            save_dataset(sweep.to_dataset(labels), out / f"{site}.zarr", model, overwrite=True)
            title = f"{site} from the run that hears {target!r} into the one that hears {other!r}"
            save(plot_sweep(recovered, labels, title), out / f"{site}.png")
            sweeps[site] = sweep

        hearing = _sweep_over_time(model, contrast, out, f"when {target!r} is heard, not {other!r}")
    console.print(_reading(lens, sweeps, labels, target, other))
    console.print(hearing)
    seconds = time.perf_counter() - start
    console.print(
        f"\nwrote lens, hearing, {' and '.join(SITES)} (.zarr, .png) to {out}/ in {seconds:.0f} s"
    )


def _sweep_over_time(model: Whisper, contrast: Contrast, out: Path, title: str) -> str:
    """Sweep what the encoder gives over time; say what the picture shows."""
    plan = plan_sweep(
        model,
        tokens=contrast.tokens,
        stack="encoder",
        site="ln_final",
        positions=f"0:{contrast.frames}",
        options=PlanOptions(window=5),
    )
    metric = metrics.logit_diff(contrast.target, contrast.other)
    sweep = activation_patching(
        model, plan, clean=contrast.clean, corrupted=contrast.corrupted, metric=metric
    )
    words = align_words(model, contrast.transcript)
    save_dataset(sweep.to_dataset(), out / "hearing.zarr", model, overwrite=True)
    quantity = share(sweep, "logit_diff")
    save(plot_timeline(quantity, np.asarray(contrast.clean.mel), words, title), out / "hearing.png")
    best = int(np.argmax(sweep.recovered[0]))
    return (
        f"hearing.png: what the encoder gives for {place(plan, plan.windows[best])} of the "
        f"{contrast.frames / FRAMES_PER_SECOND:.1f} s alone brings back "
        f"{sweep.recovered[0, best]:.0%}."
    )


def _reading(
    lens: LogitLens, sweeps: dict[str, SweepResult], labels: list[str], target: str, other: str
) -> str:
    """Describe the pictures by their numbers."""
    layers = len(lens.top_tokens)
    probability = float(np.exp(np.asarray(lens.target_log_prob)[-1, -1]))
    assert lens.saturation_layer is not None
    lines = [
        f"lens.png: after {labels[-1]!r} the next word is settled in layer "
        f"{int(lens.saturation_layer[-1])} of 0-{layers - 1}, with probability {probability:.2f}.",
    ]
    for site, sweep in sweeps.items():
        recovered = sweep.recovered[0]
        layer, column = np.unravel_index(np.argmax(recovered), recovered.shape)
        pos = sweep.plan.positions[column]
        lines.append(
            f"{site}.png: of all {sweep.plan.runs} cells, layer {layer} at {labels[pos]!r} brings "
            f"back most of {target!r} over {other!r}: {recovered[layer, column]:.0%}."
        )
    lines.append(
        "resid_pre is what all earlier layers have gathered at a token; cross_attn_out is what one "
        "layer reads from the audio there. Where the second is large and the first small, the word "
        "is read from the audio in that very layer."
    )
    return "\n".join(lines)
