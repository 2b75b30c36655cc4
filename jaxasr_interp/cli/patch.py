"""`patch`: sweeps that copy one run's activations into another, cell by cell."""

from pathlib import Path
from typing import Annotated

import typer

from jaxasr_interp.checkpoint.load import load_model
from jaxasr_interp.cli.options import (
    AlphaOption,
    DtypeOption,
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
)
from jaxasr_interp.cli.output import print_json
from jaxasr_interp.cli.results import (
    Attribution,
    draw,
    partial_file,
    run_sweep,
    say_what_agrees,
)
from jaxasr_interp.cli.sweeping import (
    Selection,
    check_method,
    find_words,
)
from jaxasr_interp.errors import InputError
from jaxasr_interp.model.whisper import require_tokenizer
from jaxasr_interp.patching.contrast import ask_word, check_metric_name, find_contrast
from jaxasr_interp.patching.prepare import DIRECTIONS
from jaxasr_interp.report.plots import axis_labels, recovery
from jaxasr_interp.report.tables import window_labels
from jaxasr_interp.runtime.store import file_provenance, reserve, save_dataset
from jaxasr_interp.speech.audio import load_audio
from jaxasr_interp.speech.noise import check_reference, reference_audio

_OF_TWO_CLIPS = ("logit_diff", "log_prob", "kl")
_OF_ONE_CLIP = ("log_prob", "kl", "cross_entropy")


def patch(
    clean: Annotated[str, typer.Argument(help="Audio whose activations are copied.")],
    corrupted: Annotated[
        str | None, typer.Argument(help="Audio into whose run they are copied.")
    ] = None,
    model: ModelOption = "tiny.en",
    dtype: DtypeOption = None,
    language: LanguageOption = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="In place of CORRUPTED: noise, silence or an audio file, into whose run with the "
            "clean clip's transcript the activations are copied."
        ),
    ] = None,
    seed: SeedOption = 0,
    text: Annotated[
        str | None, typer.Option(help="Give both runs this transcript instead of what is heard.")
    ] = None,
    word: Annotated[
        str | None,
        typer.Option(
            help="With --reference or --text: the word that is asked for, word:2 for the second "
            "time it occurs; by default the last."
        ),
    ] = None,
    stack: StackOption = "decoder",
    site: SitesOption = None,
    layers: LayersOption = None,
    heads: HeadsOption = None,
    positions: PositionsOption = None,
    window: WindowOption = None,
    stride: StrideOption = None,
    alpha: AlphaOption = "1",
    direction: Annotated[
        str, typer.Option(help="clean_to_corrupted, or corrupted_to_clean.")
    ] = "clean_to_corrupted",
    metric: MetricOption = None,
    method: MethodOption = "minimal",
    memory: MemoryOption = None,
    attribution: Annotated[
        bool, typer.Option("--attribution", help="Approximate the sweep by gradients.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option(help="With --attribution: integrated gradients in so many steps.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="With --attribution: sweep exactly too, and compare.")
    ] = False,
    verify: Annotated[
        int | None,
        typer.Option("--verify-top", help="With --attribution: sweep the best K cells exactly."),
    ] = None,
    resume: ResumeOption = False,
    plan_only: PlanOption = False,
    out: Annotated[Path, typer.Option(help="Folder for sweep.zarr and PNGs.")] = Path("runs/patch"),
    as_json: JsonOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Patch activations of one clip's run into another's, and see which bring its words back.

    Two clips that are heard alike up to one word: the sweep asks what decides that word. One clip
    and a --reference: both runs are given its transcript, and the sweep asks what makes the model
    hear the last word, or --word. Decoder sites are swept over tokens, those of the encoder over
    time.
    """
    _check_clips(corrupted, reference, text, word)
    if reference is not None:
        check_reference(reference)
    wanted = Selection.read(
        stack,
        site or ["resid_pre"],
        layers=layers,
        heads=heads,
        positions=positions,
        window=window,
        stride=stride,
        alpha=alpha,
        memory=memory,
    )
    default = _OF_TWO_CLIPS if reference is None else _OF_ONE_CLIP
    names = [check_metric_name(name) for name in metric or default]
    check_method(method)
    if direction not in DIRECTIONS:
        raise InputError(f"Unknown direction {direction!r}: choose one of {', '.join(DIRECTIONS)}.")
    if not attribution and (steps is not None or exact or verify is not None):
        raise InputError("--steps, --exact and --verify-top go with --attribution: add it.")
    if not plan_only:
        reserve(out / "sweep.zarr", overwrite)

    whisper = load_model(model, dtype)
    tokenizer = require_tokenizer(whisper)
    sound = load_audio(clean)
    against = str(corrupted or reference)
    if reference is None and text is None:
        contrast = find_contrast(whisper, sound, load_audio(against), language=language)
    else:
        instead = load_audio(against) if corrupted else reference_audio(against, sound, seed)
        contrast = ask_word(whisper, sound, instead, text=text, word=word, language=language)
    words = find_words(whisper, contrast) if wanted.timed else ()
    plan = wanted.plan(whisper, contrast, words)
    target, other = axis_labels(tokenizer, [contrast.target, contrast.other])
    if plan_only or not as_json:
        print(f"clean:     {contrast.clean_text}\ncorrupted: {contrast.corrupted_text or against}")
        print(f"question:  {target!r} or {other!r}?\n{plan}")
    if plan_only:
        return

    gradients = Attribution(1 if steps is None else steps, exact, verify)
    swept = run_sweep(
        whisper,
        plan,
        contrast,
        names,
        direction=direction,
        method=method,
        resume=partial_file(out) if resume else None,
        attribution=gradients if attribution else None,
    )
    labels = axis_labels(tokenizer, contrast.tokens)
    heard = window_labels(plan, labels, words)
    dataset = swept.to_dataset(labels, heard).assign_attrs(
        file_provenance(clean=clean, corrupted=against)
        | contrast.provenance
        | {"target": target, "other": other, "seed": seed}
    )
    save_dataset(dataset, out / "sweep.zarr", whisper, overwrite=overwrite)
    partial_file(out).unlink(missing_ok=True)
    say_what_agrees(swept.result)
    title = (
        f"{Path(clean).name} says {target!r}, {Path(against).name} {other!r} ({Path(model).name})"
    )
    pictures = [
        draw(recovery(swept.result, name), contrast, labels, words, title, out / f"{name}.png")
        for name in names
    ]
    if as_json:
        print_json(dataset.to_dict())
        return
    swept.show(heard)
    print(f"wrote {out / 'sweep.zarr'} and {', '.join(map(str, pictures))}")


def _check_clips(
    corrupted: str | None, reference: str | None, text: str | None, word: str | None
) -> None:
    if corrupted is None and reference is None:
        raise InputError(
            "There is one clip: give a second one, or --reference noise, silence or a file."
        )
    if corrupted is not None and reference is not None:
        raise InputError("There are a second clip and a --reference: give one of them.")
    if word is not None and reference is None and text is None:
        raise InputError(
            "Two clips ask for the first word in which they differ: --word goes with --reference "
            "or --text."
        )
