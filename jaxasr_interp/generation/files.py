"""Transcription of files: short ones in batches, each longer one by itself."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxasr_interp.errors import InputError
from jaxasr_interp.generation.means import resolve_means
from jaxasr_interp.generation.options import GREEDY, Choice
from jaxasr_interp.generation.transcribe import Times, Transcript, transcribe, transcribe_batch
from jaxasr_interp.interventions.grammar import as_intervention
from jaxasr_interp.interventions.intervention import UNEDITED
from jaxasr_interp.model.edits import EditLike
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.speech.audio import load_audio

_BATCH_SIZE = 8


def transcribe_files(
    model: Whisper,
    paths: Sequence[str | Path],
    *,
    language: str | None = None,
    task: str | None = None,
    choice: Choice = GREEDY,
    edit: EditLike = UNEDITED,
    batch_size: int = _BATCH_SIZE,
    times: Times = False,
) -> Iterator[tuple[str, Transcript | InputError]]:
    """Transcribe files in order, short ones in batches.

    Args:
        model: from `load_model`.
        paths: audio files.
        language: language of all files; by default the checkpoint's, or detected for each.
        task: `"transcribe"`, or `"translate"` into English; by default the checkpoint's, else
            `"transcribe"`.
        choice: how tokens are chosen.
        edit: intervention on the model, or its text, such as `zero:decoder.cross_z@4.7` (see
            `interventions.grammar`); an edit or a function acts on the decoder. The language is
            detected without it.
        batch_size: number of short clips that share one run of the model.
        times: give segments and words with their times, or `"segments"` alone; each clip is then
            transcribed alone.

    Yields:
        Each path with its transcript, or with the error if the file cannot be read.
    """
    (edit,) = resolve_means(model, [as_intervention(edit, model)])
    for start in range(0, len(paths), batch_size):
        batch = [str(path) for path in paths[start : start + batch_size]]
        audio = {path: _read(path) for path in batch}
        clips = {p: a for p, a in audio.items() if not isinstance(a, InputError)}
        longest = 0 if times or choice.fallback else model.config.max_samples
        short = [path for path, clip in clips.items() if len(clip) <= longest]
        done: dict[str, Transcript | InputError] = {
            path: error for path, error in audio.items() if isinstance(error, InputError)
        }
        if short:
            # Every batch is full, so that all have one shape, which takes one compilation.
            filled = (short * batch_size)[:batch_size] if len(paths) > batch_size else short
            transcripts = transcribe_batch(
                model,
                [clips[p] for p in filled],
                language=language,
                task=task,
                choice=choice,
                edit=edit,
            )
            done |= zip(short, transcripts, strict=False)
        for path in batch:
            if path not in done:
                done[path] = transcribe(
                    model,
                    clips[path],
                    language=language,
                    task=task,
                    choice=choice,
                    edit=edit,
                    times=times,
                )
            yield path, done[path]


def _read(path: str) -> np.ndarray | InputError:
    try:
        return load_audio(path)
    except InputError as error:
        return error
