"""The texts of a data set's clips as tokens: given in a table, or the model's own transcripts."""

import dataclasses
import json
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxasr_interp.errors import InputError
from jaxasr_interp.generation.transcribe import encode_batch
from jaxasr_interp.generation.utterances import DecoderInput, decoder_inputs
from jaxasr_interp.generation.word_times import Word, align_words
from jaxasr_interp.model.run import EncoderRun, with_encoded
from jaxasr_interp.model.sites import EncoderActivations
from jaxasr_interp.model.whisper import Whisper, require_tokenizer
from jaxasr_interp.runtime.copies import copies
from jaxasr_interp.runtime.runner import Unit, Work, units_of
from jaxasr_interp.runtime.slot_store import Variable
from jaxasr_interp.speech.batches import Batch, read_batch
from jaxasr_interp.speech.clips import Clips
from jaxasr_interp.speech.texts import Texts
from jaxasr_interp.speech.utterance import Utterance

TEXT_VARIABLES = {"text_tokens": Variable((), (), "T"), "problem": Variable((), (), "T")}
"""The arrays of a store of texts."""

_BATCH_SIZE = 8


@dataclasses.dataclass(frozen=True)
class ClipText:
    """The text of one clip.

    Attributes:
        prompt: tokens of the prompt.
        text: tokens of the text.
        frames: number of encoder frames that hold sound.
        words: words of the text and when they are said, if that was asked for.
    """

    prompt: tuple[int, ...]
    text: tuple[int, ...]
    frames: int
    words: tuple[Word, ...] = ()

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens of prompt and text."""
        return *self.prompt, *self.text

    def to_json(self) -> str:
        """Write the text as JSON."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "ClipText":
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        words = tuple(
            Word(**one | {name: tuple(one[name]) for name in ("tokens", "frames")})
            for one in fields["words"]
        )
        return cls(tuple(fields["prompt"]), tuple(fields["text"]), fields["frames"], words)


@dataclasses.dataclass(frozen=True)
class TextWork(Work[Batch]):
    """Finds the text of every clip, in batches.

    Attributes:
        model: a model with a tokenizer.
        clips: the clips.
        texts: where the texts come from.
        timed: whether to find when the words are said.
    """

    model: Whisper
    clips: Clips
    texts: Texts
    timed: bool

    @property
    def units(self) -> list[Unit]:
        """Batches of clips."""
        return units_of(len(self.clips.rows), _BATCH_SIZE)

    def load(self, unit: Unit) -> Batch:
        """Read the clips of one batch."""
        config = self.model.config
        return read_batch(
            self.clips,
            unit.rows,
            batch_size=_BATCH_SIZE,
            n_mels=config.n_mels,
            mel_frames=config.mel_frames,
        )

    def on_copies(self) -> "list[TextWork]":
        """Return the same work on each copy of the model."""
        return [dataclasses.replace(self, model=own) for own in copies(self.model)]

    def run(self, unit: Unit, loaded: Batch) -> Mapping[str, np.ndarray]:
        """Find the texts of one batch, or the reasons why there are none."""
        rows = [self.clips.rows[i] for i in unit.rows]
        rows += rows[-1:] * (_BATCH_SIZE - len(rows))
        written = [self.texts.written(row) or None for row in rows]
        languages = [self.texts.language_of(row) for row in rows]
        states = self._states(loaded, known=all(written) and self._named(languages))
        inputs = decoder_inputs(self.model, states, written, languages)
        texts, problems = [""] * len(rows), list(loaded.problems)
        for i, given in enumerate(inputs):
            if isinstance(given, InputError):
                problems[i] = problems[i] or str(given)
            elif not problems[i] and loaded.frames[i]:
                words = self._words(loaded, i, states[i], given) if self.timed else ()
                texts[i] = ClipText(given.prompt, given.text, loaded.frames[i], words).to_json()
            elif not problems[i]:
                problems[i] = "The clip holds no sound."
        return {"text_tokens": np.asarray(texts, "T"), "problem": np.asarray(problems, "T")}

    def _named(self, languages: list[str | None]) -> bool:
        return all(languages) or not require_tokenizer(self.model).multilingual

    def _states(self, batch: Batch, known: bool) -> Float[Array, "clip frame d_model"]:
        """Encode the clips, unless neither text nor language nor word times need it."""
        if known and not self.timed:
            return jnp.zeros((len(batch.mels), 0, 0))
        return encode_batch(self.model.encoder, jnp.asarray(batch.mels))

    def _words(
        self, batch: Batch, i: int, states: Float[Array, "frame d_model"], given: DecoderInput
    ) -> tuple[Word, ...]:
        tokens = jnp.asarray(given.tokens, jnp.int32)
        mel = jnp.asarray(batch.mels[i])
        utterance = Utterance(mel, tokens, len(given.prompt), batch.frames[i], given.language)
        run = EncoderRun(states, EncoderActivations())
        return align_words(self.model, with_encoded(self.model, utterance, run))
