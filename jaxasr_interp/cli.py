"""The command line. Results go to standard output, progress and errors to standard error.

Bad input is answered with one sentence and exit code 2.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import jax
import typer
from rich.console import Console
from rich.progress import (
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from jaxasr_interp import metrics
from jaxasr_interp._version import __version__
from jaxasr_interp.audio import CHUNK_SAMPLES, load_audio, log_mel_spectrogram
from jaxasr_interp.checkpoint.load import load_model
from jaxasr_interp.contrast import find_contrast
from jaxasr_interp.decoding import require_tokenizer
from jaxasr_interp.demo import run_demo
from jaxasr_interp.errors import InputError
from jaxasr_interp.forward import decode, encode
from jaxasr_interp.lens import logit_lens
from jaxasr_interp.listing import list_models
from jaxasr_interp.patching import activation_patching, plan_sweep
from jaxasr_interp.plots import axis_labels, plot_lens, plot_sweep
from jaxasr_interp.store import reserve, save_dataset, write_json
from jaxasr_interp.tables import lens_table, sweep_table
from jaxasr_interp.transcription import Transcript, transcribe_batch, transcribe_files

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Mechanistic interpretability of Whisper speech recognition.",
)
console = Console()
errors = Console(stderr=True)

ModelOption = Annotated[
    str, typer.Option("--model", help="Bundled name, local folder or hub id (see `models`).")
]
DtypeOption = Annotated[str | None, typer.Option(help="float32 (default), bfloat16 or float64.")]
LanguageOption = Annotated[
    str | None, typer.Option(help="Spoken language, code or name; detected by default.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace results in --out.")]


@app.command()
def transcribe(
    files: Annotated[list[str], typer.Argument(help="Audio files of any length.")],
    model: ModelOption = "tiny.en",
    dtype: DtypeOption = None,
    language: LanguageOption = None,
    task: Annotated[
        str, typer.Option(help="transcribe, or translate into English.")
    ] = "transcribe",
    suppress: Annotated[
        bool, typer.Option(help="Leave out the tokens that the checkpoint's settings forbid.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option(help="Also write the results to this JSON file.")
    ] = None,
    as_json: JsonOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Write down what is said."""
    if out is not None:
        reserve(out, overwrite)
    whisper = load_model(model, dtype)
    results: list[dict[str, Any]] = []
    failed: list[InputError] = []
    transcripts = transcribe_files(whisper, files, language=language, task=task, suppress=suppress)
    with _progress(len(files), "clip") as advance:
        for path, transcript in transcripts:
            if isinstance(transcript, InputError):
                failed.append(transcript)
                errors.print(f"error: {transcript}", markup=False, soft_wrap=True)
            else:
                results.append(_as_json(path, transcript))
                if not as_json:
                    label = f"{path}\t" if len(files) > 1 else ""
                    print(f"{label}{transcript.text}", flush=True)
            advance(1)
    if as_json:
        print(json.dumps(results, indent=2, ensure_ascii=False))
    if out is not None:
        write_json(out, results)
    if failed:
        raise typer.Exit(2)


@app.command()
def lens(
    file: Annotated[str, typer.Argument(help="An audio file of up to 30 s.")],
    model: ModelOption = "tiny.en",
    dtype: DtypeOption = None,
    language: LanguageOption = None,
    text: Annotated[
        str | None, typer.Option(help="Read this transcript instead of the model's own.")
    ] = None,
    top_k: Annotated[int, typer.Option(help="Most probable tokens to keep.")] = 5,
    out: Annotated[Path, typer.Option(help="Folder for lens.zarr and lens.png.")] = Path(
        "runs/lens"
    ),
    as_json: JsonOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Show the next token that every decoder layer would say: the logit lens."""
    reserve(out / "lens.zarr", overwrite)
    whisper = load_model(model, dtype)
    tokenizer = require_tokenizer(whisper)
    audio = load_audio(file)
    if len(audio) > CHUNK_SAMPLES:
        raise InputError(f"{file} is longer than 30 s: cut it to the sentence.")
    if text is None or language is None:
        heard = transcribe_batch(whisper, [audio], language=language)[0]
        language = language or heard.language
        written = heard.tokens if text is None else tokenizer.encode(" " + text.strip())
    else:
        written = tokenizer.encode(" " + text.strip())
    tokens = [*tokenizer.prompt(language), *written]
    mel = log_mel_spectrogram(audio, whisper.config.n_mels)
    run = decode(whisper, tokens, encode(whisper, mel, sites=()).states, sites="resid_post")
    result = logit_lens(whisper, run, top_k=top_k)
    labels = axis_labels(tokenizer, tokens)
    dataset = result.to_dataset().assign_coords(token=("pos", labels))
    save_dataset(dataset, out / "lens.zarr", whisper, overwrite=overwrite)
    title = f"logit lens of {model}"
    plot_lens(result, tokenizer, labels, title, out / "lens.png")
    if as_json:
        print(json.dumps(dataset.to_dict()["data_vars"] | {"tokens": tokens}, ensure_ascii=False))
    else:
        console.print(lens_table(result, tokenizer, tokens))
        print(f"wrote {out / 'lens.zarr'} and {out / 'lens.png'}")


@app.command()
def patch(
    clean: Annotated[str, typer.Argument(help="Audio whose activations are copied.")],
    corrupted: Annotated[str, typer.Argument(help="Audio into whose run they are copied.")],
    model: ModelOption = "tiny.en",
    dtype: DtypeOption = None,
    language: LanguageOption = None,
    site: Annotated[str, typer.Option(help="Decoder site that is patched.")] = "resid_pre",
    metric: Annotated[
        list[str] | None, typer.Option(help="log_prob, logit_diff or kl; repeatable.")
    ] = None,
    plan_only: Annotated[bool, typer.Option("--plan", help="Print the plan and stop.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for sweep.zarr and PNGs.")] = Path("runs/patch"),
    as_json: JsonOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Patch every decoder layer and position of one clip's run into another's.

    Both clips are transcribed; the sweep asks what decides the first token in which they differ.
    """
    if not plan_only:
        reserve(out / "sweep.zarr", overwrite)
    names = metric or ["logit_diff", "log_prob", "kl"]
    unknown = [name for name in names if name not in ("log_prob", "logit_diff", "kl")]
    if unknown:
        raise InputError(f"Unknown metric {unknown[0]!r}: choose log_prob, logit_diff or kl.")
    whisper = load_model(model, dtype)
    tokenizer = require_tokenizer(whisper)
    contrast = find_contrast(whisper, load_audio(clean), load_audio(corrupted), language=language)
    plan = plan_sweep(whisper, tokens=contrast.tokens, site=site)
    target, other = axis_labels(tokenizer, [contrast.target, contrast.other])
    if plan_only or not as_json:
        print(f"clean:     {contrast.clean_text}\ncorrupted: {contrast.corrupted_text}")
        print(f"question:  {target!r} or {other!r}?\n{plan}")
    if plan_only:
        return
    chosen = {
        "log_prob": metrics.log_prob(contrast.target),
        "logit_diff": metrics.logit_diff(contrast.target, contrast.other),
        "kl": metrics.kl(),
    }
    with _progress(plan.runs, "patch") as advance:
        done = 0

        def on_progress(total: int) -> None:
            nonlocal done
            advance(total - done)
            done = total

        result = activation_patching(
            whisper,
            plan,
            clean=contrast.clean,
            corrupted=contrast.corrupted,
            metric=[chosen[name] for name in names],
            on_progress=on_progress,
        )
    labels = axis_labels(tokenizer, contrast.tokens)
    dataset = result.to_dataset(labels).assign_attrs(
        clean=clean, corrupted=corrupted, target=target, other=other
    )
    save_dataset(dataset, out / "sweep.zarr", whisper, overwrite=overwrite)
    for name in names:
        title = f"clean says {target!r}, corrupted {other!r} ({model})"
        plot_sweep(result, name, labels, title, out / f"{name}.png")
    if as_json:
        print(json.dumps(dataset.to_dict(), ensure_ascii=False))
    else:
        console.print(sweep_table(result, labels))
        print(f"wrote {out / 'sweep.zarr'} and {', '.join(f'{out / name}.png' for name in names)}")


@app.command()
def models(as_json: JsonOption = False) -> None:
    """List the models that can be loaded here, and how."""
    rows = list_models()
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    from rich.table import Table

    table = Table()
    for name in ("model", "kind", "state", "how"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    console.print(table)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the demo's results.")] = Path("demo"),
) -> None:
    """Transcribe two sentences that differ in one word, and show what decides that word."""
    run_demo(out, console)


@contextmanager
def _progress(total: int, unit: str) -> Iterator[Any]:
    """A bar with rate and time left on standard error; yields `advance(n)`."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.completed}/{task.total} {task.fields[unit]}"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        job = bar.add_task("", total=total, unit=unit, rate="")

        def advance(steps: int) -> None:
            bar.advance(job, steps)
            speed = bar.tasks[0].finished_speed or bar.tasks[0].speed
            bar.update(job, rate=f"{speed:.1f} {unit}/s" if speed else "")

        yield advance


def _as_json(path: str, transcript: Transcript) -> dict[str, Any]:
    fields = dataclasses.asdict(transcript)
    if not transcript.segments:
        del fields["segments"]
    return {"file": path, **fields}


def _keep_compiled_programs() -> None:
    """Let later processes skip compilation, unless JAX was told where to keep programs."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(cache / "jaxasr-interp" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(
            f"jaxasr-interp {__version__} (jax {jax.__version__}, {jax.devices()[0].device_kind})"
        )
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="And exit.")
    ] = False,
) -> None:
    _keep_compiled_programs()


def main() -> None:
    """Run the command line."""
    try:
        app()
    except InputError as error:
        errors.print(f"error: {error}", markup=False, soft_wrap=True)
        sys.exit(2)
