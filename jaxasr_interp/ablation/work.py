"""Transcribing clips under many interventions, clip by clip into the slots of a store.

Each clip is encoded once; all interventions on the decoder are then rows of one batch of
`generate_rows`. Each intervention on the encoder needs an encoder run of its own.
"""

import dataclasses
import json
import zlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxasr_interp.ablation.groups import generation_groups
from jaxasr_interp.errors import InputError
from jaxasr_interp.generation.batching import generate_rows
from jaxasr_interp.generation.language import name_languages
from jaxasr_interp.generation.options import Choice, Generated
from jaxasr_interp.generation.prompts import default_prompt
from jaxasr_interp.interventions.intervention import (
    UNEDITED,
    Intervention,
    encode_reference,
    encode_under,
)
from jaxasr_interp.model.run import EncoderRun
from jaxasr_interp.model.whisper import Whisper, require_tokenizer
from jaxasr_interp.runtime.copies import copies, move_to
from jaxasr_interp.runtime.identity import identify
from jaxasr_interp.runtime.runner import Unit, Work, units_of
from jaxasr_interp.runtime.slot_store import Layout, SlotStore, Variable
from jaxasr_interp.speech.audio import log_mel_spectrogram
from jaxasr_interp.speech.utterance import Clip

_ENCODED_AT_ONCE = 8
_CLIPS_AT_ONCE = 16
_NOT_KEPT = ("text", "acts")

type Mel = Float[Array, "n_mels mel_frame"]


@dataclasses.dataclass(frozen=True, eq=False)
class AblationWork(Work[list[Mel]]):
    """Transcribes clips under interventions; a unit is some clips.

    Attributes:
        model: a model with a tokenizer.
        clips: clips of up to 30 s.
        edits: the interventions.
        choice: how tokens are chosen.
        memory: bytes that may be used in addition to the model.
    """

    model: Whisper
    clips: tuple[Clip, ...]
    edits: tuple[Intervention, ...]
    choice: Choice
    memory: int | None

    @property
    def units(self) -> list[Unit]:
        """Clips that are transcribed together."""
        at_once = 1 if jax.default_backend() == "cpu" else _CLIPS_AT_ONCE
        units = units_of(len(self.clips), at_once)
        return [Unit(unit.rows, unit.size * len(self.edits)) for unit in units]

    @property
    def layout(self) -> Layout:
        """The store: a slot for each clip, with a transcript for each intervention."""
        names = np.asarray([clip.name for clip in self.clips], "T")
        transcripts = Variable(("edit",), (len(self.edits),), "T")
        return Layout(
            kind="sweep on text",
            rows=len(self.clips),
            rows_per_chunk=1,
            variables={"transcript": transcripts},
            known={"name": (("clip",), names)},
            attributes={},
        )

    @property
    def identity(self) -> dict[str, str]:
        """What the transcripts depend on.

        Raises:
            InputError: an intervention cannot be identified.
        """
        return identify(
            model=self.model,
            clips=[(clip.name, clip.language, clip.audio) for clip in self.clips],
            edits=list(map(_parts, self.edits)),
            choice=self.choice,
        )

    def load(self, unit: Unit) -> list[Mel]:
        """Compute the spectrograms."""
        n_mels, frames = self.model.config.n_mels, self.model.config.mel_frames
        return [log_mel_spectrogram(self.clips[i].audio, n_mels, frames) for i in unit.rows]

    def on_copies(self) -> "list[AblationWork]":
        """Return the same work on each copy of the model."""
        replicas = copies(self.model)
        return [self] if len(replicas) == 1 else [self._on(own) for own in replicas]

    def _on(self, model: Whisper) -> "AblationWork":
        edits = move_to(model, [(one.encoder, one.decoder, one.steps) for one in self.edits])
        moved = [
            dataclasses.replace(one, encoder=encoder, decoder=decoder, steps=steps)
            for one, (encoder, decoder, steps) in zip(self.edits, edits, strict=True)
        ]
        return dataclasses.replace(self, model=model, edits=tuple(moved))

    def run(self, unit: Unit, loaded: list[Mel]) -> Mapping[str, np.ndarray]:
        """Transcribe a unit's clips."""
        rows = _under_all(self, [self.clips[i] for i in unit.rows], loaded)
        return {"transcript": np.asarray([list(map(_written, row)) for row in rows], "T")}

    def read(self, store: SlotStore) -> tuple[tuple[Generated, ...], ...]:
        """Read the transcripts of all clips, by intervention."""
        tokenizer = require_tokenizer(self.model)
        by_edit = store.read("transcript").T

        def one(written: str) -> Generated:
            row = json.loads(written)
            return Generated(
                prompt=tuple(row["prompt"]),
                tokens=tuple(row["tokens"]),
                log_probs=tuple(row["log_probs"]),
                finished=row["finished"],
                no_speech_prob=row["no_speech_prob"],
                text=tokenizer.decode(row["tokens"]),
            )

        return tuple(tuple(map(one, row)) for row in by_edit.tolist())


def _written(transcript: Generated) -> str:
    kept = {name: value for name, value in vars(transcript).items() if name not in _NOT_KEPT}
    return json.dumps(kept)


def _parts(edit: Intervention) -> list[Any]:
    """List all parts of an intervention: the text alone may name a file that has changed."""
    reference = edit.reference
    if reference is not None and Path(reference).is_file():
        reference = Path(reference).read_bytes()
    return [edit.text, edit.encoder, edit.decoder, edit.steps, reference, edit.seed]


def _under_all(
    work: AblationWork, clips: Sequence[Clip], mels: Sequence[Mel]
) -> list[list[Generated]]:
    """Transcribe some clips, each under every intervention."""
    model, edits, choice, memory = work.model, work.edits, work.choice, work.memory
    audio = [clip.audio for clip in clips]
    states, _ = encode_under(model, audio, UNEDITED, mels)
    prompts = _prompts(model, clips, states)
    # The draws of a clip do not depend on the other clips of the batch.
    draws = [zlib.crc32(clip.name.encode()) >> 1 for clip in clips]
    results: list[dict[int, Generated]] = [{} for _ in clips]
    encode_other = _remembering(len(clips))
    for group in generation_groups(edits, len(prompts[0])):
        if group.encodes:
            for start in range(0, len(group.members), _ENCODED_AT_ONCE):
                some = slice(start, start + _ENCODED_AT_ONCE)
                members, own = group.members[some], group.edits[some]
                each = [encode_under(model, audio, edits[i], mels, encode_other) for i in members]
                generated = generate_rows(
                    model,
                    jnp.concatenate([encoded for encoded, _ in each]),
                    [[edit] for edit in own for _ in clips],
                    prompts=prompts * len(members),
                    references=_joined([reference for _, reference in each]),
                    choice=choice,
                    draws=draws * len(members),
                    memory=memory,
                )
                for n, (row,) in enumerate(generated):
                    results[n % len(clips)][members[n // len(clips)]] = row
            continue
        references, one = None, edits[group.members[0]]
        if group.edits[0].needs_reference and one.reference is not None:
            runs = [encode_other(model, clip, one.reference, one.seed, ()) for clip in audio]
            references = jnp.stack([run.states for run in runs])
        generated = generate_rows(
            model,
            states,
            [group.edits] * len(clips),
            prompts=prompts,
            references=references,
            choice=choice,
            draws=draws,
            memory=memory,
        )
        for own, rows in zip(results, generated, strict=True):
            own.update(zip(group.members, rows, strict=True))
    return [[own[i] for i in range(len(edits))] for own in results]


def _prompts(
    model: Whisper, clips: Sequence[Clip], states: Float[Array, "clip frame d_model"]
) -> list[list[int]]:
    """Make each clip's prompt in its language, which is detected if it is not known."""
    prompts = []
    # Clips are taken one by one, so that a clip's language does not depend on the others.
    for clip, own in zip(clips, states, strict=True):
        (code,) = name_languages(model, own[None], [clip.language])
        if isinstance(code, InputError):
            raise code
        prompts.append(default_prompt(model, code))
    return prompts


def _remembering(count: int) -> Callable[..., EncoderRun]:
    """Make a `encode_reference` that keeps its last runs for the next interventions."""
    runs: dict[Hashable, EncoderRun] = {}

    def encode_other(
        model: Whisper, clip: np.ndarray, reference: str, seed: int, sites: str | Iterable[str]
    ) -> EncoderRun:
        key = id(clip), reference, seed, sites
        if key not in runs:
            if len(runs) == count:
                runs.clear()
            runs[key] = encode_reference(model, clip, reference, seed, sites)
        return runs[key]

    return encode_other


def _joined(
    references: Sequence[Float[Array, "clip frame d_model"] | None],
) -> Float[Array, "clip frame d_model"] | None:
    known = [one for one in references if one is not None]
    return jnp.concatenate(known) if known else None
