"""`ablate --generate`: what becomes of the transcripts of many clips without each component."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxasr_interp.ablation.result import TextSweep
from jaxasr_interp.ablation.sweep import ablation_sweep, component_edits
from jaxasr_interp.checkpoint.load import load_model
from jaxasr_interp.cli.clips import read_clips
from jaxasr_interp.cli.kinds import Kind
from jaxasr_interp.cli.options import parse_alphas
from jaxasr_interp.cli.output import console, print_json, progress_of_total
from jaxasr_interp.generation.options import Choice
from jaxasr_interp.interventions.grammar import parse_edit
from jaxasr_interp.interventions.indices import parse_indices
from jaxasr_interp.interventions.intervention import Intervention
from jaxasr_interp.model.sites import check_stack
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.report.plots import plot_text_sweep
from jaxasr_interp.report.tables import text_sweep_table
from jaxasr_interp.runtime.store import reserve, save_dataset, start_partial


def ablate_texts(
    files: Sequence[str],
    *,
    model: str,
    dtype: str | None,
    language: str | None,
    edits: Sequence[str],
    kind: Kind,
    references: Sequence[str],
    stack: str,
    sites: Sequence[str] | None,
    layers: str | None,
    heads: str | None,
    alpha: str,
    max_new_tokens: int,
    memory: int | None,
    resume: bool,
    out: Path,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Transcribe the clips under each edit, or without each component; write table and pictures."""
    choice, known = Choice(max_new_tokens=max_new_tokens), check_stack(stack)
    alphas, chosen = parse_alphas(alpha), parse_indices("layers", layers)
    some_heads = (
        None
        if heads in (None, "each")
        else "all"
        if heads == "all"
        else parse_indices("heads", heads)
    )
    reserve(out / "texts.zarr", overwrite)
    partial = out / "texts.partial.jsonl"
    start_partial(partial, resume=resume, overwrite=overwrite)
    clips = read_clips(files, language)
    whisper = load_model(model, dtype)
    interventions: list[Intervention] = (
        [parse_edit(edit, whisper) for edit in edits]
        if edits
        else component_edits(
            whisper,
            kind.as_edit(references),
            stack=known,
            sites=sites or kind.default_sites(known),
            layers=chosen,
            heads=some_heads,
            alphas=alphas,
        )
    )
    total = len(clips) * (len(interventions) + 1)
    if not as_json:
        print(f"{len(clips)} clips × {len(interventions)} edits (and none): {total} transcripts")
    with progress_of_total(total, "text") as on_progress:
        swept = ablation_sweep(
            whisper,
            clips,
            interventions,
            choice=choice,
            memory=memory,
            resume=partial,
            on_progress=on_progress,
        )
    dataset = swept.to_dataset().assign_attrs(max_new_tokens=max_new_tokens)
    save_dataset(dataset, out / "texts.zarr", whisper, overwrite=overwrite)
    partial.unlink(missing_ok=True)
    pictures = _draw(swept, whisper, Path(model).name, out)
    if as_json:
        print_json(dataset.to_dict())
        return
    console.print(text_sweep_table(swept))
    if not pictures:
        print("no picture: it takes edits of single components, each of another one")
    print(f"wrote {', '.join(map(str, [out / 'texts.zarr', *pictures]))}")


def _draw(swept: TextSweep, model: Whisper, name: str, out: Path) -> list[Path]:
    """The pictures of what there is to see: changed words, loops begun, loops ended, errors."""
    some = swept.interventions[1:]
    n, title = len(swept.clips), f"{name}, {len(swept.clips)} clips: each component "
    looped = swept.loops[0]
    shown = {
        "changed": (
            "and the text that it changes",
            "word error rate against the unedited text",
            [swept.rate(i + 1, "unedited") for i in range(len(some))],
        ),
        "loops": (
            "and the loops that it keeps away",
            "begin to loop, of clips that do not",
            swept.loops[1:][:, ~looped].mean(1) if n > looped.sum() else None,
        ),
        "resolved": (
            "and the loops that depend on it",
            "stop looping, of clips that do",
            1 - swept.loops[1:][:, looped].mean(1) if looped.any() else None,
        ),
        "wer": (
            "and the errors without it",
            f"word error rate (unedited {100 * swept.rate(0):.1f}%)",
            None if math.isnan(swept.rate(0)) else [swept.rate(i + 1) for i in range(len(some))],
        ),
    }
    paths = [
        plot_text_sweep(np.asarray(values), some, label, title + what, out / f"{key}.png")
        for key, (what, label, values) in shown.items()
        if values is not None
    ]
    return [path for path in paths if path is not None]
