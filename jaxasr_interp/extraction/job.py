"""The work on every batch: it runs clips through the model and makes the arrays of the store."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxasr_interp.extraction.places import anywhere
from jaxasr_interp.extraction.programs import decode_reduced, encode_reduced
from jaxasr_interp.extraction.reductions import fit, narrowed
from jaxasr_interp.extraction.request import Request
from jaxasr_interp.extraction.slots import Slots
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.runtime.copies import copies
from jaxasr_interp.runtime.runner import Unit, Work, units_of
from jaxasr_interp.runtime.slot_store import Variable
from jaxasr_interp.speech.batches import Batch, read_batch
from jaxasr_interp.speech.clips import Clips
from jaxasr_interp.speech.texts import Texts

CONTROL = "random."


@dataclasses.dataclass(frozen=True)
class ExtractionJob(Work[Batch]):
    """The inputs and settings that all batches share.

    Attributes:
        model: the model whose activations are extracted.
        control: a model with random weights that runs on the same input, if any.
        requests: the requested activations.
        clips: all clips.
        texts: where the decoder's texts come from.
        dtype: dtype of the stored activations.
        n_tokens: number of tokens of the longest run.
        batch_size: number of clips in a batch.
    """

    model: Whisper
    control: Whisper | None
    requests: tuple[Request, ...]
    clips: Clips
    texts: Texts
    dtype: str
    n_tokens: int
    batch_size: int

    @property
    def encoder(self) -> tuple[Request, ...]:
        """The requests for encoder activations."""
        return tuple(request for request in self.requests if request.stack == "encoder")

    @property
    def decoder(self) -> tuple[Request, ...]:
        """The requests for decoder activations."""
        return tuple(request for request in self.requests if request.stack == "decoder")

    @property
    def names_words(self) -> bool:
        """Whether words have to be found before activations are read."""
        return any(request.reduction == "word" for request in self.requests)

    @property
    def needs_texts(self) -> bool:
        """Whether each clip needs a text."""
        return self.names_words or bool(self.decoder)

    @property
    def models(self) -> dict[str, Whisper]:
        """The model and its control, by the prefix of their variables."""
        return {"": self.model} | ({} if self.control is None else {CONTROL: self.control})

    @functools.cached_property
    def variables(self) -> dict[str, Variable]:
        """The arrays of the store.

        An axis that has different sizes in the two stacks gets the stack's name: `encoder_layer`.
        """
        shapes = self._shapes()
        sizes: dict[str, set[int]] = {}
        for request in self.requests:
            for axis, size in zip(request.axes, shapes[request.name], strict=True):
                sizes.setdefault(axis, set()).add(size)
        found = {}
        for prefix in self.models:
            for request in self.requests:
                axes = tuple(
                    axis if len(sizes[axis]) == 1 else f"{request.stack}_{axis}"
                    for axis in request.axes
                )
                found[prefix + request.name] = Variable(axes, shapes[request.name], self.dtype)
        found["mel"] = Variable(("mel_feature",), (2 * self.model.config.n_mels,), "float32")
        found["frames"] = Variable((), (), "int32")
        given = ("decoder_text", "decoder_text_source") if self.needs_texts else ()
        texts = ("problem", *given)
        return found | {name: Variable((), (), "T") for name in texts}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        config = self.model.config
        encode = functools.partial(encode_reduced, requests=self.encoder)
        decode = functools.partial(decode_reduced, requests=self.decoder)
        mels = jax.ShapeDtypeStruct((1, config.n_mels, config.mel_frames), jnp.float32)
        tokens = jax.ShapeDtypeStruct((1, self.n_tokens), jnp.int32)
        some = {r: jnp.asarray([anywhere(r)], jnp.int32) for r in self.requests}
        states, arrays = jax.eval_shape(
            encode, self.model.encoder, mels, tuple(some[r] for r in self.encoder)
        )
        arrays |= jax.eval_shape(
            decode, self.model.decoder, states, tokens, tuple(some[r] for r in self.decoder)
        )
        return {name: array.shape[1:] for name, array in arrays.items()}

    @property
    def units(self) -> list[Unit]:
        """The batches."""
        return units_of(len(self.clips.rows), self.batch_size)

    def load(self, unit: Unit) -> Batch:
        """Read the clips of one batch."""
        config = self.model.config
        return read_batch(
            self.clips,
            unit.rows,
            batch_size=self.batch_size,
            n_mels=config.n_mels,
            mel_frames=config.mel_frames,
        )

    def on_copies(self) -> "list[ExtractionJob]":
        """Return the same work on each copy of the models."""
        both = zip(*(copies(one) for one in self.models.values()), strict=True)
        return [
            dataclasses.replace(self, model=own[0], control=own[1] if self.control else None)
            for own in both
        ]

    def run(self, unit: Unit, loaded: Batch) -> dict[str, np.ndarray]:
        """Compute the arrays of one batch, in the form of the store.

        Raises:
            InputError: a value is too large for the store's dtype.
        """
        model, mels = self.model, jnp.asarray(loaded.mels)
        slots = Slots(loaded, [self.clips.rows[i] for i in unit.rows])
        if self.names_words:
            states, _ = encode_reduced(model.encoder, mels, (), requests=())
            slots.write(model, states, self.texts, words=True)
        where, states, arrays = slots.where(self.encoder), {}, {}
        for prefix, one in self.models.items():
            states[prefix], kept = encode_reduced(one.encoder, mels, where, requests=self.encoder)
            arrays |= {prefix + name: value for name, value in kept.items()}
        if self.needs_texts and not self.names_words:
            slots.write(model, states[""], self.texts, words=False)
        if self.decoder:
            tokens, where = slots.tokens(model.config.max_tokens), slots.where(self.decoder)
            for prefix, one in self.models.items():
                kept = decode_reduced(
                    one.decoder, states[prefix], tokens, where, requests=self.decoder
                )
                arrays |= {prefix + name: value for name, value in kept.items()}
        columns = {
            "mel": loaded.features,
            "frames": np.asarray(loaded.frames, np.int32),
            "problem": np.asarray(slots.problems, "T"),
        }
        if self.needs_texts:
            columns["decoder_text"] = np.asarray(slots.texts(model), "T")
            columns["decoder_text_source"] = np.asarray(slots.sources, "T")
        return self._stored(arrays, slots.left_out) | columns

    def _stored(self, arrays: dict[str, Array], left_out: list[int]) -> dict[str, np.ndarray]:
        stored = {}
        for request in self.requests:
            for prefix in self.models:
                name = prefix + request.name
                variable = self.variables[name]
                value = np.array(arrays[name])
                value[left_out] = np.nan
                stored[name] = narrowed(fit(value, request.axes, variable.shape), name, self.dtype)
        return stored
