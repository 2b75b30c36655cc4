"""The time at which each word is said, found by the decoder's cross-attention to the audio.

At each token, some cross-attention heads attend to the audio of the next token. Dynamic time
warping finds the monotonic path through the mean of their patterns that collects most attention; a
word begins where the path reaches its first token. This is the algorithm of openai/whisper (Radford
et al. 2022); the heads are the checkpoint's `alignment_heads`. Its boundaries are then moved to
where the sound has them; see `word_boundaries`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.generation.prompts import padded_length
from jaxasr_interp.generation.word_boundaries import refine_boundaries
from jaxasr_interp.model.run import DecoderRun, decode, encode_utterance
from jaxasr_interp.model.whisper import Whisper, require_tokenizer
from jaxasr_interp.runtime.transforms import host_only
from jaxasr_interp.speech.positions import FRAMES_PER_SECOND, words_of
from jaxasr_interp.speech.utterance import Utterance

_FILTER_WIDTH = 7
_MEL_FRAMES_PER_FRAME = 2
# More than any pattern, which is standardised, is worth.
_COST_OUTSIDE = 10.0


@dataclasses.dataclass(frozen=True)
class Word:
    """A word of a transcript and the time at which it is said.

    Attributes:
        text: the word with its case and punctuation.
        name: the word in lower case without punctuation, as positions name it.
        tokens: position of its first token in the run, and the position after its last token.
        frames: its first encoder frame (20 ms each), and the frame after its last frame.
    """

    text: str
    name: str
    tokens: tuple[int, int]
    frames: tuple[int, int]

    @property
    def seconds(self) -> tuple[float, float]:
        """Start and end of the word in seconds."""
        start, stop = self.frames
        return start / FRAMES_PER_SECOND, stop / FRAMES_PER_SECOND


@dataclasses.dataclass(frozen=True)
class Stretch:
    """A part of a transcript, and where in the sound it is said.

    Attributes:
        tokens: position of its first token in the run, and the position after its last.
        frames: the first encoder frame in which it may be said, and the frame after the last.
    """

    tokens: tuple[int, int]
    frames: tuple[int, int]


@host_only("read decode's cross_pattern under them")
def align_words(model: Whisper, utterance: Utterance, *, refine: bool = True) -> tuple[Word, ...]:
    """Find when the words of a transcript are said.

    Args:
        model: a model with a tokenizer.
        utterance: the clip with its prompt and transcript, without end-of-text, and the number of
            encoder frames that hold sound.
        refine: move the boundaries of words to where the sound has them; without it, words start
            and end where openai/whisper's do.

    Returns:
        The words in order; none if the transcript has none.

    Raises:
        InputError: there is no prompt, the transcript is longer than the model's context, the clip
            fills no frame or more than the model has, or numbers are not finite.
    """
    whole = Stretch((utterance.prompt, len(utterance.tokens)), (0, model.config.max_frames))
    return align_within(model, utterance, [whole], refine=refine)


def align_within(
    model: Whisper, utterance: Utterance, stretches: Sequence[Stretch], *, refine: bool = True
) -> tuple[Word, ...]:
    """Find when the words of a transcript are said, of which some frames are known.

    Args:
        model: see `align_words`.
        utterance: see `align_words`.
        stretches: parts of the transcript, which follow one another and are all of it, and where
            each is said.
        refine: see `align_words`.

    Returns:
        The words in order; none lies in two stretches.

    Raises:
        InputError: see `align_words`.
    """
    tokens, prompt = np.asarray(utterance.tokens).tolist(), utterance.prompt
    frames = model.config.max_frames if utterance.frames is None else utterance.frames
    tokenizer = require_tokenizer(model)
    if not 1 <= prompt <= len(tokens):
        raise InputError(f"The prompt is {prompt} of {len(tokens)} tokens: expected at least 1.")
    if not 1 <= frames <= model.config.max_frames:
        raise InputError(
            f"The clip fills {frames} frames: expected 1 to {model.config.max_frames}."
        )
    if len(tokens) > model.config.max_tokens:
        raise InputError(
            f"The transcript ends at token {len(tokens)}: expected at most "
            f"{model.config.max_tokens}."
        )
    words = [
        (name, (first + start, first + stop))
        for first, last in (stretch.tokens for stretch in stretches)
        for name, (start, stop) in words_of(tokenizer, tokens[first:last])
    ]
    if not words:
        return ()
    # The pattern at a token attends to the audio of the next token.
    cost = -_attention(model, utterance, frames)[prompt - 1 : len(tokens)]
    mel = np.asarray(utterance.mel[:, : _MEL_FRAMES_PER_FRAME * frames])
    if not (np.isfinite(cost).all() and np.isfinite(mel).all()):
        raise InputError("The spectrogram, or how the model attends to it, is not finite.")
    for stretch in stretches:
        (first, last), (start, stop) = stretch.tokens, stretch.frames
        rows = cost[first - prompt : last - prompt]
        rows[:, :start] += _COST_OUTSIDE
        rows[:, stop:] += _COST_OUTSIDE
    path = warp(cost)
    reached = path[1, np.diff(path[0], prepend=-1) > 0]
    edges = reached[np.array([window for _, window in words]) - prompt]
    if refine:
        edges = _refined(edges, [name for name, _ in words], mel)
    # A word has at least one frame, though the path may pass several tokens in one frame.
    return tuple(
        Word(
            tokenizer.decode(tokens[window[0] : window[1]]).strip(),
            name,
            window,
            (min(start, frames - 1), min(max(stop, start + 1), frames)),
        )
        for (name, window), (start, stop) in zip(words, edges.tolist(), strict=True)
    )


def _attention(model: Whisper, utterance: Utterance, frames: int) -> Float[np.ndarray, "pos frame"]:
    """Compute how each token of a transcript and its end attend to the sound, in heads that follow.

    The patterns are normalised and averaged over the alignment heads.
    """
    tokens, tokenizer = np.asarray(utterance.tokens).tolist(), require_tokenizer(model)
    states = encode_utterance(model, utterance).states
    run = [*tokens, tokenizer.end_of_text][: model.config.max_tokens]
    # Padding gives few lengths, as each takes a compilation; no token attends to later ones.
    padding = padded_length(len(run), model.config.max_tokens) - len(run)
    padded = run + [tokenizer.end_of_text] * padding
    pattern = decode(model, padded, states, sites=["cross_pattern"]).acts.cross_pattern
    layers, heads = np.array(following_heads(model)).T
    return _sharpened(np.asarray(pattern[layers, heads, : len(run), :frames], np.float64))


def _refined(
    edges: Int[np.ndarray, "word 2"],
    words: Sequence[str],
    mel: Float[np.ndarray, "n_mels mel_frame"],
) -> Int[np.ndarray, "word 2"]:
    boundaries = np.append(edges[:, 0], edges[-1, 1]) * _MEL_FRAMES_PER_FRAME
    letters = np.array([sum(map(str.isalnum, word)) for word in words])
    refined = refine_boundaries(boundaries, letters, mel)
    return np.rint(refined / _MEL_FRAMES_PER_FRAME).astype(int)


def warp(cost: Float[np.ndarray, "row column"]) -> Int[np.ndarray, "2 step"]:
    """Find the cheapest path from the first cell to the last by dynamic time warping.

    `D[i, j] = cost[i, j] + min(D[i-1, j-1], D[i-1, j], D[i, j-1])`.

    Args:
        cost: cost of every cell.

    Returns:
        Rows and columns of the path's cells; both rise by 0 or 1 at each step.
    """
    rows, columns = cost.shape
    total = [[np.inf] * (columns + 1) for _ in range(rows + 1)]
    total[0][0] = 0.0
    for i, values in enumerate(cost.tolist()):
        above, here = total[i], total[i + 1]
        for j, value in enumerate(values):
            here[j + 1] = value + min(above[j], above[j + 1], here[j])
    i, j, path = rows, columns, []
    while i > 0 and j > 0:
        path.append((i - 1, j - 1))
        _, i, j = min(
            (total[i - 1][j - 1], i - 1, j - 1),
            (total[i - 1][j], i - 1, j),
            (total[i][j - 1], i, j - 1),
        )
    return np.array(path[::-1]).T


def following_heads(model: Whisper) -> list[tuple[int, int]]:
    """List (layer, head) of the alignment heads; if unknown, all heads in the upper layers."""
    layers, heads = model.config.decoder_layers, model.config.decoder_heads
    upper = [(layer, head) for layer in range(layers // 2, layers) for head in range(heads)]
    return list(model.generation.alignment_heads) or upper


def mean_pattern(
    run: DecoderRun, heads: Sequence[tuple[int, int]]
) -> Float[np.ndarray, "pos frame"]:
    """Average the `cross_pattern` of some heads; the run must have kept that site."""
    if run.acts.cross_pattern is None:
        raise InputError("The run lacks 'cross_pattern': decode with that site.")
    return np.stack([np.asarray(run.acts.cross_pattern[i, j]) for i, j in heads]).mean(0)


def _sharpened(pattern: Float[np.ndarray, "some pos frame"]) -> Float[np.ndarray, "pos frame"]:
    """Normalise patterns over frames, standardise over tokens, smooth, and average over heads."""
    pattern = pattern / np.maximum(pattern.sum(-1, keepdims=True), 1e-30)
    spread = np.maximum(pattern.std(1, keepdims=True), 1e-30)
    return _median((pattern - pattern.mean(1, keepdims=True)) / spread).mean(0)


def _median(values: Float[np.ndarray, "some pos frame"]) -> Float[np.ndarray, "some pos frame"]:
    """Compute the running median over frames, with mirrored ends."""
    reach = _FILTER_WIDTH // 2
    if values.shape[-1] <= reach:
        return values
    padded = np.pad(values, ((0, 0), (0, 0), (reach, reach)), mode="reflect")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, _FILTER_WIDTH, -1), axis=-1)
