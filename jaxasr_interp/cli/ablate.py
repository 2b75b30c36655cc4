"""`ablate`: what each component, layer and head does, by taking it away."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from jaxasr_interp.checkpoint.load import load_model
from jaxasr_interp.cli.generating import ablate_texts
from jaxasr_interp.cli.kinds import KINDS, Kind
from jaxasr_interp.cli.options import (
    AlphaOption,
    DtypeOption,
    EditsOption,
    HeadsOption,
    JsonOption,
    LanguageOption,
    LayersOption,
    MemoryOption,
    MethodOption,
    MetricOption,
    ModelOption,
    OverwriteOption,
    PlanOption,
    PositionsOption,
    ResumeOption,
    SeedOption,
    SitesOption,
    StackOption,
    StrideOption,
    WindowOption,
    parse_memory,
    refuse_options,
)
from jaxasr_interp.cli.output import console, print_json
from jaxasr_interp.cli.results import draw, partial_file, run_sweep
from jaxasr_interp.cli.sweeping import (
    Selection,
    check_method,
    find_words,
)
from jaxasr_interp.errors import InputError
from jaxasr_interp.interventions.kinds import Interchange, Knockout, Noise, Scale, Zero
from jaxasr_interp.model.edits import Edit
from jaxasr_interp.model.sites import (
    PATTERN_SITES,
    DecoderActivations,
    EncoderActivations,
    check_site,
    check_stack,
    head_axis,
)
from jaxasr_interp.model.whisper import Whisper, require_tokenizer
from jaxasr_interp.patching.contrast import Contrast, ask_transcript, ask_word, check_metric_name
from jaxasr_interp.patching.means import mean_activations
from jaxasr_interp.report.plots import axis_labels, change, plot_ablation
from jaxasr_interp.report.tables import sweep_table, window_labels
from jaxasr_interp.runtime.store import file_provenance, reserve, save_dataset
from jaxasr_interp.speech.audio import load_audio
from jaxasr_interp.speech.noise import reference_audio
from jaxasr_interp.speech.positions import resolve_windows

_ONLY_SWEEPS = (
    "text",
    "word",
    "positions",
    "window",
    "stride",
    "metric",
    "method",
    "seed",
    "plan_only",
)
_ONLY_COMPONENTS = ("kind", "reference", "stack", "site", "layers", "heads", "alpha")


def ablate(
    context: typer.Context,
    files: Annotated[
        list[str],
        typer.Argument(
            help="An audio file of up to 30 s; with --generate several, or a .tsv with columns "
            "path and text."
        ),
    ],
    model: ModelOption = "tiny.en",
    dtype: DtypeOption = None,
    language: LanguageOption = None,
    kind: Annotated[str, typer.Option(help=f"{KINDS}.")] = "zero",
    reference: Annotated[
        list[str] | None,
        typer.Option(
            help="Of mix: noise (default), silence or an audio file. Of mean: files, by default "
            "the clip itself; repeatable."
        ),
    ] = None,
    seed: SeedOption = 0,
    text: Annotated[
        str | None, typer.Option(help="Give the run this transcript instead of what is heard.")
    ] = None,
    word: Annotated[
        str | None,
        typer.Option(help="Ask for this word of the transcript; by default for all of it."),
    ] = None,
    stack: StackOption = "decoder",
    site: SitesOption = None,
    layers: LayersOption = None,
    heads: HeadsOption = None,
    positions: PositionsOption = "all",
    window: WindowOption = None,
    stride: StrideOption = None,
    alpha: AlphaOption = "1",
    metric: MetricOption = None,
    method: MethodOption = "minimal",
    generate: Annotated[
        bool,
        typer.Option("--generate", help="Write transcripts without each component instead."),
    ] = False,
    edit: EditsOption = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest text, with --generate.")] = 100,
    memory: MemoryOption = None,
    resume: ResumeOption = False,
    plan_only: PlanOption = False,
    out: Annotated[Path, typer.Option(help="Folder for ablation.zarr and PNGs.")] = Path(
        "runs/ablate"
    ),
    as_json: JsonOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Take away one component at a time, and see how much worse the transcript gets.

    By default every layer's sublayers and every head of self- and cross-attention are set to zero
    at all positions; read are the cross-entropy of the model's own transcript and the KL divergence
    from the intact run. In place of zero: mean (over positions, and over --reference clips), mix
    (the value of a run that hears the --reference), noise, scale, or knockout (attention does not
    see some positions: tokens for pattern, frames or times for cross_pattern and the encoder's).

    With --generate the model writes a transcript without each component, or under each --edit, and
    the texts are compared: word errors, loops, words where nothing is said.
    """
    what = Kind.read(kind)
    if generate:
        refuse_options(context, _ONLY_SWEEPS, "does nothing with --generate")
        if edit:
            refuse_options(context, _ONLY_COMPONENTS, "does nothing beside --edit")
        ablate_texts(
            files,
            model=model,
            dtype=dtype,
            language=language,
            edits=edit or (),
            kind=what,
            references=what.check_references(reference),
            stack=stack,
            sites=site,
            layers=layers,
            heads=heads,
            alpha=alpha,
            max_new_tokens=max_new_tokens,
            memory=parse_memory(memory),
            resume=resume,
            out=out,
            as_json=as_json,
            overwrite=overwrite,
        )
        return
    if len(files) > 1 or edit:
        raise InputError("Several files, or an --edit, go with --generate.")
    refuse_options(context, ("max_new_tokens",), "goes with --generate")
    (file,) = files
    known = check_stack(stack)
    for one in site or ():
        check_site(known, one)
    sites = site or what.default_sites(known)
    wanted = Selection.read(
        stack,
        sites,
        layers=layers,
        heads=heads or ("each" if any(head_axis(one) is not None for one in sites) else None),
        positions=positions,
        window=window,
        stride=stride,
        alpha=alpha,
        memory=memory,
    )
    references = what.check_references(reference)
    if what.name == "knockout" and (len(sites) != 1 or not PATTERN_SITES.issuperset(sites)):
        raise InputError(
            "A knock-out hides what attention looks at: choose one --site, pattern or "
            "cross_pattern."
        )
    names = [check_metric_name(name) for name in metric or ("cross_entropy", "kl_all")]
    check_method(method)
    if not plan_only:
        reserve(out / "ablation.zarr", overwrite)

    whisper = load_model(model, dtype)
    tokenizer = require_tokenizer(whisper)
    sound = load_audio(file)
    other = reference_audio(references[0], sound, seed) if what.name == "mix" else sound
    given = {"text": text, "language": language}
    contrast = (
        ask_transcript(whisper, sound, other, **given)
        if word is None
        else ask_word(whisper, sound, other, word=word, **given)
    )
    words = find_words(whisper, contrast) if wanted.timed else ()
    plan = wanted.plan(whisper, contrast, words)
    if plan_only or not as_json:
        print(f"heard: {contrast.clean_text}\nablation: {kind}\n{plan}")
    if plan_only:
        return

    swept = run_sweep(
        whisper,
        plan,
        contrast
        if what.name == "mix"
        else dataclasses.replace(contrast, corrupted_mel=contrast.clean_mel),
        names,
        direction="corrupted_to_clean",
        method=method,
        resume=partial_file(out) if resume else None,
        edit=_edit(what, whisper, wanted, contrast, references, seed),
    )
    labels = axis_labels(tokenizer, contrast.tokens)
    heard = window_labels(plan, labels, words)
    dataset = swept.to_dataset(labels, heard)
    dataset["change"] = dataset.patched - dataset.clean
    dataset = dataset.assign_attrs(
        file_provenance(clip=file, **{f"reference_{i}": one for i, one in enumerate(references)})
        | contrast.provenance
        | {"kind": kind, "seed": seed}
    )
    save_dataset(dataset, out / "ablation.zarr", whisper, overwrite=overwrite)
    partial_file(out).unlink(missing_ok=True)
    pictures = []
    for name in names:
        moved, path = change(swept.result, name), out / f"{name}.png"
        title = f"{what.phrase} in {Path(file).name} ({Path(model).name})"
        if len(plan.windows) == 1:
            pictures.append(plot_ablation(moved, title, path))
        else:
            pictures.append(draw(moved, contrast, labels, words, title, path))
    if as_json:
        print_json(dataset.to_dict())
        return
    for i, name in enumerate(names):
        note = f" from {swept.result.clean[i]:.3f}"
        console.print(sweep_table(change(swept.result, name), heard, note, most=8))
    print(f"wrote {out / 'ablation.zarr'} and {', '.join(map(str, pictures))}")


def _edit(
    kind: Kind,
    model: Whisper,
    wanted: Selection,
    contrast: Contrast,
    references: Sequence[str],
    seed: int,
) -> Edit | None:
    """What is done to each component; `None` to take the corrupted run's value."""
    match kind.name:
        case "zero":
            return Zero()
        case "scale":
            return Scale(kind.number)
        case "noise":
            return Noise(kind.number, seed)
        case "knockout":
            return Knockout(*_hidden_keys(kind.keys, model, wanted, contrast))
        case "mean":
            return Interchange(_mean(model, wanted, contrast, references))
        case _:
            return None


def _mean(
    model: Whisper, wanted: Selection, contrast: Contrast, references: Sequence[str]
) -> EncoderActivations | DecoderActivations:
    """Mean activations of the clip itself, or of other clips with what is heard in them."""
    clips = [load_audio(path) for path in references]
    runs = [ask_transcript(model, clip, clip) for clip in clips] or [contrast]
    return mean_activations(
        model,
        [one.clean for one in runs],
        stack=wanted.stack,
        sites=wanted.sites,
        n_tokens=len(contrast.tokens),
        prompt=contrast.prompt,
        frames=[one.frames for one in runs],
    )


def _hidden_keys(
    text: str, model: Whisper, wanted: Selection, contrast: Contrast
) -> tuple[int, int]:
    """The window of frames or tokens that attention does not see."""
    if wanted.stack == "decoder" and "pattern" in wanted.sites:
        return resolve_windows(text, len(contrast.tokens))[0]
    return resolve_windows(text, model.config.max_frames, timed=True)[0]
