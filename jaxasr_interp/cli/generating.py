"""`ablate --generate`: what becomes of the transcripts of many clips without each component."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxasr_interp.audio import CHUNK_SAMPLES, load_audio
from jaxasr_interp.checkpoint.load import load_model
from jaxasr_interp.cli.kinds import Kind
from jaxasr_interp.cli.options import parse_alphas
from jaxasr_interp.cli.output import console, errors, print_json, progress_of_total
from jaxasr_interp.decoding import Choice
from jaxasr_interp.edit_grammar import parse_edit
from jaxasr_interp.errors import InputError
from jaxasr_interp.intervention import Intervention
from jaxasr_interp.model import Whisper
from jaxasr_interp.plots import plot_text_sweep
from jaxasr_interp.ranges import parse_indices
from jaxasr_interp.sites import check_stack
from jaxasr_interp.store import reserve, save_dataset
from jaxasr_interp.tables import text_sweep_table
from jaxasr_interp.text_result import Clip, TextSweep
from jaxasr_interp.text_sweep import ablation_sweep, component_edits

_SITES = {
    "decoder": ("attn_out", "cross_attn_out", "mlp_out", "z", "cross_z"),
    "encoder": ("attn_out", "mlp_out", "z"),
}


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
    some_heads = None if heads in (None, "each") else parse_indices("heads", heads)
    reserve(out / "texts.zarr", overwrite)
    clips = _read_clips(files, language)
    whisper = load_model(model, dtype)
    interventions: list[Intervention] = (
        [parse_edit(edit, whisper) for edit in edits]
        if edits
        else component_edits(
            whisper,
            kind.as_edit(references),
            stack=known,
            sites=sites or _SITES[known],
            layers=chosen,
            heads=some_heads,
            alphas=alphas,
        )
    )
    partial = out / "texts.partial.jsonl"
    if not resume:
        partial.unlink(missing_ok=True)
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
    dataset = swept.to_dataset()
    save_dataset(dataset, out / "texts.zarr", whisper, overwrite=overwrite)
    partial.unlink(missing_ok=True)
    pictures = _draw(swept, whisper, Path(model).name, out)
    if as_json:
        print_json(dataset.to_dict())
        return
    console.print(text_sweep_table(swept))
    print(f"wrote {', '.join(map(str, [out / 'texts.zarr', *pictures]))}")


def _draw(swept: TextSweep, model: Whisper, name: str, out: Path) -> list[Path]:
    """The pictures of what there is to see: changed words, loops begun, loops ended, errors."""
    some = swept.interventions[1:]
    n, title = len(swept.clips), f"{name}, {len(swept.clips)} clips: "
    looped = swept.loops[0]
    shown = {
        "changed": (
            [swept.rate(i + 1, "unedited") for i in range(len(some))],
            "word error rate against the unedited text (%)",
        ),
        "loops": (
            swept.loops[1:][:, ~looped].mean(1) if n > looped.sum() else None,
            "begin to loop (% of clips that do not)",
        ),
        "resolved": (
            1 - swept.loops[1:][:, looped].mean(1) if looped.any() else None,
            "stop looping (% of clips that do)",
        ),
        "wer": (
            [swept.rate(i + 1) for i in range(len(some))]
            if not math.isnan(swept.rate(0))
            else None,
            f"word error rate (%; unedited {100 * swept.rate(0):.1f})",
        ),
    }
    paths = [
        plot_text_sweep(np.asarray(values), some, label, title + key, out / f"{key}.png")
        for key, (values, label) in shown.items()
        if values is not None
    ]
    return [path for path in paths if path is not None]


def _read_clips(files: Sequence[str], language: str | None) -> list[Clip]:
    """The clips of audio files, and of tables with columns `path`, `text` and perhaps `lang`."""
    rows: list[tuple[Path, str | None, str | None]] = []
    for file in files:
        if file.endswith(".tsv"):
            rows += _read_table(Path(file))
        else:
            rows.append((Path(file), None, None))
    clips = []
    for path, text, own in rows:
        audio = load_audio(path)
        if len(audio) > CHUNK_SAMPLES:
            errors.print(f"left out: {path} is longer than 30 s", markup=False, soft_wrap=True)
            continue
        clips.append(Clip(str(path), audio, text, language or own))
    if not clips:
        raise InputError("There are no clips of up to 30 s to transcribe.")
    return clips


def _read_table(path: Path) -> list[tuple[Path, str | None, str | None]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a table: {error}.") from None
    if not rows or "path" not in rows[0]:
        raise InputError(f"{path} has no column 'path': give tab-separated columns path and text.")
    # Silence has no text; where the text is merely unknown the column says nothing either.
    return [
        (path.parent / row["path"], row.get("text") or None, row.get("lang") or None)
        for row in rows
    ]
