"""The slots of one batch while the model runs: their clips, and the decoder's texts."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.extraction.places import anywhere, positions
from jaxasr_interp.extraction.programs import Where
from jaxasr_interp.extraction.request import Request
from jaxasr_interp.extraction.texts import GivenText, given_texts, with_words
from jaxasr_interp.generation.prompts import padded_length
from jaxasr_interp.model.whisper import Whisper, require_tokenizer
from jaxasr_interp.speech.batches import Batch
from jaxasr_interp.speech.tables import Row
from jaxasr_interp.speech.texts import Texts


class Slots:
    """The texts and problems of a batch's clips; a clip with a problem is left out.

    Args:
        batch: the batch.
        rows: columns of the batch's clips.
    """

    def __init__(self, batch: Batch, rows: Sequence[Row]):
        self.frames, self.problems = batch.frames, list(batch.problems)
        self.mels = jnp.asarray(batch.mels)
        self.rows = [*rows, *[{}] * (len(batch.frames) - len(rows))]
        self.runs: list[GivenText | None] = [None] * len(self.rows)

    @property
    def left_out(self) -> list[int]:
        """Numbers of the clips that have a problem."""
        return [i for i, problem in enumerate(self.problems) if problem]

    def write(
        self,
        model: Whisper,
        states: Float[Array, "clip frame d_model"],
        texts: Texts,
        *,
        words: bool,
    ) -> None:
        """Find the decoder's text for each clip and, if `words`, when its words are said."""
        runs = given_texts(model, states, self.rows, texts)
        for i, run in enumerate(runs):
            if isinstance(run, InputError):
                self.problems[i] = self.problems[i] or str(run)
            elif self.frames[i]:
                found = (
                    with_words(model, self.mels[i], states[i], run, self.frames[i])
                    if words
                    else run
                )
                self.runs[i] = found

    def where(self, requests: Sequence[Request]) -> Where:
        """Find the positions of each request in each clip."""
        found = [self._places(i, requests) for i in range(len(self.rows))]
        return tuple(jnp.asarray(np.asarray(one, np.int32)) for one in zip(*found, strict=True))

    def _places(self, i: int, requests: Sequence[Request]) -> list[list[int]]:
        if self.frames[i] and not self.problems[i]:
            try:
                return [positions(r, self.rows[i], self.frames[i], self.runs[i]) for r in requests]
            except InputError as error:
                self.problems[i] = str(error)
        return [anywhere(request) for request in requests]

    def tokens(self, max_tokens: int) -> Int[Array, "clip pos"]:
        """Pad the tokens of all clips with zeros to few lengths, as each takes a compilation."""
        runs = [() if run is None else run.tokens for run in self.runs]
        tokens = np.zeros((len(runs), padded_length(max(map(len, runs)), max_tokens)), np.int32)
        for row, run in zip(tokens, runs, strict=True):
            row[: len(run)] = run
        return jnp.asarray(tokens)

    @property
    def sources(self) -> list[str]:
        """Source of each clip's text: `"own"`, or a column."""
        return ["" if run is None else run.source for run in self.runs]

    def texts(self, model: Whisper) -> list[str]:
        """Return the text that the decoder takes for each clip."""
        decode = require_tokenizer(model).decode
        return ["" if run is None else decode(run.tokens).strip() for run in self.runs]
