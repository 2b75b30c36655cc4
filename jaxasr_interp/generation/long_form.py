"""Transcription of long audio: each window's timestamps say where the next window starts.

This is the procedure of openai/whisper's `transcribe`; its temperature fallback is an option.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxasr_interp.generation.batching import generate_rows
from jaxasr_interp.generation.fallback import SAMPLES, decode_again, is_silent, likeliest
from jaxasr_interp.generation.means import resolve_means
from jaxasr_interp.generation.options import GREEDY, Choice, Generated
from jaxasr_interp.generation.prompts import default_prompt
from jaxasr_interp.generation.segments import Segment, TimedWord, time_words
from jaxasr_interp.interventions.grammar import as_intervention
from jaxasr_interp.interventions.intervention import UNEDITED, Intervention, encode_under
from jaxasr_interp.model.edits import EditLike, Identity
from jaxasr_interp.model.run import EncoderRun, with_encoded
from jaxasr_interp.model.sites import EncoderActivations
from jaxasr_interp.model.whisper import Whisper, require_tokenizer
from jaxasr_interp.speech.audio import (
    MEL_FRAMES_PER_SECOND,
    SAMPLE_RATE,
    log_mel_spectrogram,
)
from jaxasr_interp.speech.tokenizer import SECONDS_PER_TIMESTAMP, Tokenizer
from jaxasr_interp.speech.utterance import Utterance

# Text drawn at a higher temperature is no context for what follows.
_HIGHEST_TEMPERATURE_OF_CONTEXT = 0.5
_MEL_FRAMES_PER_TIMESTAMP = 2
# The last word may be said a little behind its segment's timestamp.
_MEL_FRAMES_BEHIND_A_SEGMENT = 20


def transcribe_windows(
    model: Whisper,
    audio: Float[np.ndarray, " samples"],
    *,
    language: str | None = None,
    task: str | None = None,
    choice: Choice = GREEDY,
    edit: EditLike = UNEDITED,
    condition_on_previous_text: bool = True,
    times: bool = False,
) -> Iterator[Segment]:
    """Transcribe audio of any length.

    Each window, of 30 s in OpenAI's models, is decoded with timestamps; the next starts where the
    last complete segment ended. A window is skipped where the no-speech probability is above 0.6
    and the mean log-probability not above -1.

    Args:
        model: from `load_model`.
        audio: 16 kHz samples.
        language: code or English name; by default the checkpoint's, else English.
        task: `"transcribe"`, or `"translate"` into English; by default the checkpoint's, else
            `"transcribe"`.
        choice: how tokens are chosen.
        edit: intervention that acts on the model in every window; see `transcribe`.
        condition_on_previous_text: put the text so far before each window's prompt.
        times: find when each word is said, in the sound and by the unedited model.

    Yields:
        Segments, in order.

    Raises:
        InputError: the language or task is unknown, or the model has no tokenizer.
    """
    tokenizer = require_tokenizer(model)
    (intervention,) = resolve_means(model, [as_intervention(edit, model)])
    samples = SAMPLE_RATE // MEL_FRAMES_PER_SECOND
    content = len(audio) // samples
    window = model.config.mel_frames
    mel = log_mel_spectrogram(audio, model.config.n_mels, content + window)
    longest_context = model.config.max_tokens // 2 - 1
    seek, context = 0, []
    while seek < content:
        size = min(window, content - seek)
        samples_here = audio[seek * samples : (seek + size) * samples]
        here, start = _window(mel, seek, size, window), seek / MEL_FRAMES_PER_SECOND
        states, references = encode_under(model, [samples_here], intervention, [here])
        previous = context[-longest_context:] if condition_on_previous_text else []
        prompt = default_prompt(model, language, task, timestamps=True, previous=previous)
        samples = SAMPLES if choice.fallback else 1
        decode = functools.partial(
            _decode, model, states, references, intervention, prompt, seek, samples
        )
        used = dataclasses.replace(choice, fallback=False)
        result = decode(used)
        if choice.fallback:
            result, used = decode_again(decode, used, result)
        if is_silent(result):
            seek += size
        else:
            pieces, advance = _cut(result.tokens, tokenizer, size)
            pieces = [
                (piece, first, last)
                for piece, first, last in pieces
                if first < last and tokenizer.decode(piece).strip()
            ]
            words: list[tuple[TimedWord, ...]] = [()] * len(pieces)
            if times and pieces:
                known = states[0] if isinstance(intervention.encoder, Identity) else None
                prompt = default_prompt(model, language, task)
                # What is said behind the last complete segment is not part of the text.
                stop = min(size, advance + _MEL_FRAMES_BEHIND_A_SEGMENT)
                frames = -(-stop // _MEL_FRAMES_PER_TIMESTAMP)
                words = _timed(model, pieces, prompt, here, frames, known, start)
            for (piece, first, last), of_piece in zip(pieces, words, strict=True):
                context += piece
                yield Segment(
                    start + first * SECONDS_PER_TIMESTAMP,
                    start + last * SECONDS_PER_TIMESTAMP,
                    tokenizer.decode(piece),
                    piece,
                    result.mean_log_prob,
                    result.no_speech_prob,
                    of_piece,
                )
            if used.temperature > _HIGHEST_TEMPERATURE_OF_CONTEXT:
                context = []
            seek += advance


def _window(
    mel: Float[Array, "n_mels mel_frame"], seek: int, size: int, window: int
) -> Float[Array, "n_mels window"]:
    return jnp.pad(mel[:, seek : seek + size], ((0, 0), (0, window - size)))


def _decode(
    model: Whisper,
    states: Float[Array, "1 frame d_model"],
    references: Float[Array, "1 frame d_model"] | None,
    intervention: Intervention,
    prompt: Sequence[int],
    seek: int,
    samples: int,
    choice: Choice,
) -> Generated:
    """Decode a window; where tokens are drawn, take the likeliest of some samples."""
    count = samples if choice.temperature > 0 else 1
    # Each window, temperature and sample has draws of its own.
    draw = 100 * seek + round(100 * min(choice.temperature, 0.99))
    edit = intervention.decoder_edit(len(prompt))
    generated = generate_rows(
        model,
        jnp.repeat(states, count, axis=0),
        [[edit]] * count,
        prompts=[prompt] * count,
        references=None if references is None else jnp.repeat(references, count, axis=0),
        choice=choice,
        draws=[count * draw + sample for sample in range(count)],
    )
    return likeliest(result for (result,) in generated)


def _timed(
    model: Whisper,
    pieces: Sequence[tuple[tuple[int, ...], int, int]],
    prompt: Sequence[int],
    mel: Float[Array, "n_mels window"],
    frames: int,
    states: Float[Array, "frame d_model"] | None,
    start: float,
) -> list[tuple[TimedWord, ...]]:
    """Find the words of a window's segments; the window is encoded if its states are not known."""
    spoken = [list(filter(require_tokenizer(model).is_text, piece)) for piece, *_ in pieces]
    tokens = jnp.asarray([*prompt, *itertools.chain(*spoken)], jnp.int32)
    window = Utterance(mel, tokens, len(prompt), frames)
    if states is not None:
        window = with_encoded(model, window, EncoderRun(states, EncoderActivations()))
    places = [(len(own), first, last) for own, (_, first, last) in zip(spoken, pieces, strict=True)]
    return time_words(model, window, places, start)


def _cut(
    tokens: tuple[int, ...], tokenizer: Tokenizer, size: int
) -> tuple[list[tuple[tuple[int, ...], int, int]], int]:
    """Cut a window's tokens into segments.

    Args:
        tokens: generated tokens, timestamps included.
        tokenizer: the tokenizer, which knows the timestamps.
        size: number of mel frames of audio in the window.

    Returns:
        (tokens, first, last) of each segment, with its start and end in steps of 20 ms from the
        window's start; and how many mel frames to advance.
    """
    begin, is_time = tokenizer.timestamp_begin, [tokenizer.is_timestamp(t) for t in tokens]
    cuts = [i for i in range(1, len(tokens)) if is_time[i - 1] and is_time[i]]
    ends_with_single = is_time[-2:] == [False, True]
    if cuts:
        if ends_with_single:
            cuts.append(len(tokens))
        pieces = [tokens[a:b] for a, b in zip([0, *cuts], cuts, strict=False)]
        # Without logit filters a piece may begin with text.
        segments = [(piece, max(0, piece[0] - begin), piece[-1] - begin) for piece in pieces]
        complete = segments[-1][2] * _MEL_FRAMES_PER_TIMESTAMP
        # Advance by the whole window if the last segment has no length, or the loop never ends.
        return segments, size if ends_with_single else complete or size
    times = [token - begin for token, timed in zip(tokens, is_time, strict=True) if timed]
    last = times[-1] if times and times[-1] else size // _MEL_FRAMES_PER_TIMESTAMP
    return [(tokens, 0, last)], size
