"""The command `ablate`: the effect of removing each component, layer and head on a transcript."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jaxasr_interp.checkpoint.load import load_model
from jaxasr_interp.cli import options
from jaxasr_interp.cli.ablations import DEFAULT_REFERENCES, default_sites, read_kind
from jaxasr_interp.cli.output import console, print_json, write_csv, write_picture
from jaxasr_interp.cli.selection import Selection, SweptSites
from jaxasr_interp.cli.sweeps import Sweep, partial_file
from jaxasr_interp.errors import InputError
from jaxasr_interp.generation.means import mean_activations
from jaxasr_interp.generation.utterances import make_utterance
from jaxasr_interp.interventions.kind_text import KindText
from jaxasr_interp.interventions.kinds import Interchange
from jaxasr_interp.model.edits import Edit
from jaxasr_interp.model.sites import PATTERN_SITES
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.patching.contrast import Contrast, ask_transcript, ask_word
from jaxasr_interp.patching.metric_names import check_metric_name
from jaxasr_interp.patching.result import SweepResult
from jaxasr_interp.patching.sweep import SweepOptions
from jaxasr_interp.report.plots import change, plot_ablation
from jaxasr_interp.report.tables import sweep_table
from jaxasr_interp.runtime.frames import to_dataframe
from jaxasr_interp.runtime.store import file_provenance, reserve, save_dataset, together
from jaxasr_interp.speech.audio import load_audio
from jaxasr_interp.speech.noise import reference_audio

if TYPE_CHECKING:
    import matplotlib.figure

_METRICS = ("cross_entropy", "kl_all")
_PHRASES = {
    "zero": "Each component set to zero",
    "scale": "Each component scaled",
    "noise": "Noise added to each component",
    "add": "A vector added to each component",
    "mix": "Each component from another run",
    "mean": "Each component set to its mean",
    "knockout": "Attention knocked out",
}


def ablate(
    file: Annotated[str, typer.Argument(help="An audio file of up to 30 s.")],
    model: options.ModelOption = "tiny.en",
    dtype: options.DtypeOption = None,
    language: options.LanguageOption = None,
    kind: Annotated[
        str,
        typer.Option(
            help="zero, scale:factor=0.5, noise:std=0.5, add:vector=v.npy, mix:ref=FILE (by "
            "default noise; or silence), mean:ref=a.flac,b.flac (by default FILE itself) or "
            "knockout:keys=START..STOP; noise and mix also take :seed=1."
        ),
    ] = "zero",
    text: Annotated[
        str | None, typer.Option(help="Use this transcript instead of the model's own.")
    ] = None,
    word: Annotated[
        str | None,
        typer.Option(help="Ask for this word of the transcript; by default for all of it."),
    ] = None,
    site: options.SweptSiteOption = None,
    positions: options.PositionsOption = "all",
    window: options.WindowOption = None,
    alpha: options.AlphaOption = "1",
    metric: options.MetricOption = None,
    memory: options.MemoryOption = None,
    plan_only: options.PlanOption = False,
    out: Annotated[Path, typer.Option(help="Folder for ablation.zarr and pictures.")] = Path(
        "runs/ablate"
    ),
    as_json: options.JsonOption = False,
    as_csv: options.CsvOption = False,
    overwrite: options.OverwriteOption = False,
) -> None:
    """Remove one component at a time, and measure how much worse the transcript gets.

    By default every layer's sublayers and every head of self- and cross-attention are set to zero
    at all positions. The metrics are the cross-entropy of the model's own transcript and the KL
    divergence from the unedited run. Other kinds than zero are mean (over positions and clips), mix
    (the value of a run on other audio), noise, scale, add and knockout (attention ignores some
    positions: tokens for pattern, frames or times for cross_pattern and in the encoder).
    """
    what = read_kind(kind, DEFAULT_REFERENCES | {"mean": ""})
    selection = Selection.read(
        site or default_sites(what), positions=positions, window=window, alpha=alpha, memory=memory
    )
    sites = selection.sites
    if what.name == "knockout" and (
        len(sites.names) > 1 or not PATTERN_SITES.issuperset(sites.names)
    ):
        raise InputError(
            "A knock-out hides what attention looks at: choose one --site, pattern or "
            "cross_pattern."
        )
    names = [check_metric_name(name) for name in metric or _METRICS]
    how = SweepOptions(
        direction="corrupted_to_clean",
        resume=partial_file(out),
    )
    phrase = _PHRASES[what.name]
    if not plan_only:
        reserve(out / "ablation.zarr", overwrite)

    whisper = load_model(model, dtype)
    contrast = _ask(whisper, file, what, selection, text=text, word=word, language=language)
    edit = _edit(what, whisper, sites, contrast)
    sweep = Sweep.plan(whisper, contrast, selection, names)
    if plan_only or not as_json:
        print(f"heard: {contrast.clean_text}\nablation: {kind}")
        print(sweep.describe(estimate=plan_only))
    if plan_only:
        return

    result = sweep.run(how, edit)
    dataset = sweep.to_dataset(result)
    dataset["change"] = dataset.patched - dataset.clean
    given = what.references or ((what.reference,) if what.reference else ())
    dataset = dataset.assign_attrs(
        file_provenance(clip=file, **{f"reference_{i}": one for i, one in enumerate(given)})
        | contrast.provenance
        | {"kind": kind, "seed": what.seed}
    )
    title = f"{phrase} in {Path(file).name} ({Path(model).name})"
    with together(out):
        pictures = [
            path
            for name in names
            for path in write_picture(_draw(sweep, result, name, title), out, name)
        ]
        if as_csv:
            write_csv(to_dataframe(dataset, dataset.patched.dims), out / "ablation.zarr")
        save_dataset(dataset, out / "ablation.zarr", whisper, overwrite=overwrite)
    partial_file(out).unlink(missing_ok=True)
    if as_json:
        print_json(dataset.to_dict())
        return
    for i, name in enumerate(names):
        note = f" from {result.clean[i]:.3f}"
        console.print(sweep_table(change(result, name), sweep.window_labels, note, most=8))
    print(f"wrote {out / 'ablation.zarr'} and {', '.join(map(str, pictures))}")


def _ask(
    model: Whisper,
    file: str,
    kind: KindText,
    selection: Selection,
    *,
    text: str | None,
    word: str | None,
    language: str | None,
) -> Contrast:
    """Make the clip's run and the reference run, and encode each once."""
    clip = load_audio(file)
    other = clip if kind.reference is None else reference_audio(kind.reference, clip, kind.seed)
    sites = selection.encoder_sites
    if word is None:
        return ask_transcript(model, clip, other, text=text, language=language, sites=sites)
    return ask_word(model, clip, other, text=text, word=word, language=language, sites=sites)


def _edit(kind: KindText, model: Whisper, sites: SweptSites, contrast: Contrast) -> Edit | None:
    """Make the edit of each component; `None` to take the other run's value."""
    if kind.name == "mix":
        return None
    if kind.name != "mean":
        n_tokens = len(contrast.tokens)
        return kind.edit(sites.stack, sites.names[0], model.config, n_tokens=n_tokens)
    kept = sites.names if sites.stack == "encoder" else ()
    clips = [
        make_utterance(model, load_audio(path), sites=kept, name=path) for path in kind.references
    ]
    means = mean_activations(
        model,
        clips or [contrast.clean],
        stack=sites.stack,
        sites=sites.names,
        n_tokens=len(contrast.tokens),
    )
    return Interchange(means)


def _draw(sweep: Sweep, result: SweepResult, metric: str, title: str) -> "matplotlib.figure.Figure":
    """Plot components by layer if all positions are one window, else a heatmap over positions."""
    moved = change(result, metric)
    if len(sweep.cells.windows) == 1:
        return plot_ablation(moved, title)
    return sweep.draw(moved, title)
