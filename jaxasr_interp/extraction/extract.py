"""The function `extract`, which writes activations of many clips to a store."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxasr_interp.errors import InputError, check_least
from jaxasr_interp.extraction.job import ExtractionJob
from jaxasr_interp.extraction.random_model import random_model
from jaxasr_interp.extraction.reading import EXTRACTION
from jaxasr_interp.extraction.request import Request, parse_requests
from jaxasr_interp.extraction.texts import longest_run
from jaxasr_interp.model.sites import SITES
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.pytree import summary
from jaxasr_interp.runtime.identity import identify
from jaxasr_interp.runtime.location import Location, locate
from jaxasr_interp.runtime.progress import Progress
from jaxasr_interp.runtime.runner import run_units
from jaxasr_interp.runtime.slot_store import Layout, open_slots
from jaxasr_interp.runtime.store import provenance
from jaxasr_interp.runtime.transforms import host_only
from jaxasr_interp.speech.clips import Clips, check_column, choose, find_clips, with_noise
from jaxasr_interp.speech.texts import OWN, Texts

AUDIO_DIGEST = "audio_sha256"
DEFAULT_SITES = ("encoder.resid_post:mean", "decoder.resid_post:end")
STORE_DTYPES = ("float32", "float16")
_ON_CPU, _ON_ACCELERATORS = 8, 16


@dataclasses.dataclass(frozen=True)
class ExtractOptions:
    """The choice of clips, the decoder's texts, and the storage of activations.

    Attributes:
        where: values allowed in a column, by column; other clips are left out.
        limit: largest number of clips.
        snr: add a copy of every clip with white noise at each of these ratios in dB, and a column
            `snr`; see `clips.with_noise`.
        text: text that the decoder takes: `"own"` for the model's own transcript, or the name of a
            column of texts; where that is empty, the model's own transcript is taken. With a text
            that the model would not generate (such as an upper-case reference) the decoder's
            activations are unlike those in generation.
        language: language of clips whose column `lang` is empty; by default detected.
        random_seed: seed of the weights of the random model; `None` for no such control.
        dtype: dtype of the stored activations: `"float32"` or `"float16"`.
        batch_size: number of clips in a batch; by default one that suits the device.
    """

    where: Mapping[str, Sequence[str]] | None = None
    limit: int | None = None
    snr: Sequence[float | int] = ()
    text: str = "own"
    language: str | None = None
    random_seed: int | None = 0
    dtype: str = "float32"
    batch_size: int | None = None

    def __post_init__(self):
        if self.dtype not in STORE_DTYPES:
            raise InputError(
                f"Activations are not stored as {self.dtype!r}: choose float32 or float16."
            )
        check_least(1, batch_size=self.batch_size, limit=self.limit)
        check_least(0, random_seed=self.random_seed)


_DEFAULT = ExtractOptions()


@dataclasses.dataclass(frozen=True)
class Extraction:
    """The outcome of an extraction.

    Attributes:
        path: path of the store, or its URL; see `open_activations`.
        clips: how many there are.
        done: how many are done, those with problems among them.
        problems: path of every clip that was left out, and why.
    """

    path: Location
    clips: int
    done: int
    problems: tuple[tuple[str, str], ...]

    __repr__ = summary


@host_only("use encode and decode under them, with the sites")
def extract(
    model: Whisper,
    clips: str | Path | Iterable[Mapping[str, Any]],
    out: str | Path,
    *,
    sites: Sequence[str] = DEFAULT_SITES,
    options: ExtractOptions = _DEFAULT,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> Extraction:
    """Run clips through the model and store activations, reduced on the device.

    The store is a Zarr group. Each request is a variable `{stack}.{site}.{reduction}` with the axis
    `clip` first, such as `encoder.resid_post.mean` [clip, layer, d_model]; the prefix `random.`
    marks the same variable of a model with random weights. `mel` [clip, mel_feature] holds mean and
    standard deviation of every mel band over the sound. The clips' columns are stored along `clip`,
    and so are `audio_sha256` (of the file, or of the samples if there is no file), `frames` (number
    of encoder frames that hold sound), `decoder_text` (text that the decoder took),
    `decoder_text_source` (`own`, or its column), `problem` (reason why a clip was left out; its
    activations are NaN) and `done`.

    The same call resumes an interrupted extraction if model, clips, audio and settings have not
    changed (`runtime.identity`). Clips run in fixed batches, so that the numbers are the same as
    without the interruption.

    Args:
        model: from `load_model`.
        clips: a manifest, a data set's folder or id, or rows such as a Hugging Face dataset's; see
            `clips.find_clips`.
        out: path of the store, or a URL such as `s3://bucket/path`.
        sites: activations to extract, such as `encoder.resid_post:mean`; see `extraction.request`.
        options: choice of clips, texts of the decoder, and storage.
        overwrite: replace the store at `out`.
        on_progress: called at the start and after each batch with the clips done, how many there
            are, and `"clips"`.

    Returns:
        The path of the store, and the clips that were left out.

    Raises:
        InputError: the clips or a request cannot be read, `out` holds something else, or a value is
            too large for `dtype`; batches that are done stay in the store.
    """
    requests = parse_requests(list(sites))
    chosen = with_noise(choose(find_clips(clips), options.where, options.limit), options.snr)
    texts = Texts(options.text, options.language)
    size = options.batch_size or (_ON_CPU if jax.default_backend() == "cpu" else _ON_ACCELERATORS)
    _check(requests, chosen, texts)
    control = None
    if options.random_seed is not None:
        control = random_model(model, options.random_seed)
    n_tokens = 1
    if any(r.stack == "decoder" for r in requests):
        n_tokens = longest_run(model, chosen.rows, texts)
    job = ExtractionJob(model, control, requests, chosen, texts, options.dtype, n_tokens, size)
    audio = [chosen.digest(i) for i in range(len(chosen.rows))]
    identity = identify(
        model=model,
        sites=[str(request) for request in requests],
        dtype=options.dtype,
        text=options.text,
        language=options.language,
        random_seed=options.random_seed,
        clips=chosen.rows,
        audio=audio,
        batch_size=size,
    )
    layout = Layout(
        kind=EXTRACTION,
        rows=len(chosen.rows),
        rows_per_chunk=size,
        variables=job.variables,
        known=_known(job, audio),
        attributes=provenance(model)
        | {
            "sites": json.dumps([str(request) for request in requests]),
            "options": json.dumps(dataclasses.asdict(options)),
        },
    )
    store = open_slots(locate(out), layout, identity, overwrite=overwrite)
    run_units(store, job.units, job, phase="clips", on_progress=on_progress)
    done = store.done
    return Extraction(store.path, len(done), int(done.sum()), tuple(store.problems))


def _check(requests: Sequence[Request], clips: Clips, texts: Texts) -> None:
    """Raise `InputError` if a named column does not exist, or the name of a column is taken."""
    axes = {axis for sites in SITES.values() for of_site in sites.values() for axis in of_site}
    ours = {
        "clip",
        "mel",
        "mel_feature",
        "frames",
        "problem",
        "done",
        "decoder_text",
        "decoder_text_source",
        AUDIO_DIGEST,
    } | axes
    for column in clips.columns:
        if column in ours or not column or set(column) & set("./"):
            raise InputError(
                f"The column {column!r} cannot be stored, as its name is taken or has a dot or "
                "slash: rename it."
            )
    named = {r.argument for r in requests if r.reduction == "word"}
    for column in sorted(named | ({texts.column} - {OWN})):
        check_column(clips.rows[0], column)


def _known(
    job: ExtractionJob, audio: Sequence[str]
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Return the clips' columns, and the positions along the axes of `at` and `every`."""
    rows = job.clips.rows
    labels = {column: [row[column] for row in rows] for column in job.clips.columns}
    labels[AUDIO_DIGEST] = list(audio)
    known = {name: (("clip",), np.asarray(values, "T")) for name, values in labels.items()}
    for request in job.requests:
        variable = job.variables[request.name]
        name = variable.axes[request.axis] if len(variable.axes) > request.axis else ""
        if request.reduction == "at":
            known[name] = ((name,), np.asarray(request.places, "T"))
        elif request.reduction == "every":
            size = variable.shape[request.axis]
            known[name] = ((name,), np.arange(0, size * request.step, request.step))
    return known
