"""Generation of many clips under many edits, in batches of one shape that fit the memory."""

import dataclasses
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.generation.batch import (
    GeneratedRows,
    GenerationJob,
    stack_edits,
)
from jaxasr_interp.generation.batch_sizes import batch_sizes
from jaxasr_interp.generation.beam import search
from jaxasr_interp.generation.kv_cache import CrossKV
from jaxasr_interp.generation.logit_filters import make_logit_filter
from jaxasr_interp.generation.options import GREEDY, Choice, Generated
from jaxasr_interp.generation.prompts import (
    default_prompt,
    limit_new_tokens,
    make_prompt,
    padded_length,
    stack_prompts,
)
from jaxasr_interp.generation.rollout import make_sampling, roll_out
from jaxasr_interp.model.config import WhisperConfig
from jaxasr_interp.model.decoder import Decoder
from jaxasr_interp.model.edits import Edit, EditLike, edit_of
from jaxasr_interp.model.run import check_states
from jaxasr_interp.model.whisper import Whisper, require_tokenizer
from jaxasr_interp.runtime.copies import copies, move_to, side_by_side
from jaxasr_interp.runtime.memory import default_memory
from jaxasr_interp.runtime.transforms import GENERATE_FIXED, host_only
from jaxasr_interp.speech.tokenizer import Tokenizer


@host_only(GENERATE_FIXED)
def generate_rows(
    model: Whisper,
    states: Float[Array, "clip frame d_model"],
    edits: Sequence[Sequence[EditLike]],
    *,
    prompts: Sequence[Sequence[int]] | None = None,
    references: Float[Array, "clip frame d_model"] | None = None,
    choice: Choice = GREEDY,
    draws: Sequence[int] | None = None,
    memory: int | None = None,
) -> list[list[Generated]]:
    """Generate the transcripts of several clips, each under several edits.

    Args:
        model: a model with a tokenizer.
        states: encoder states of each clip.
        edits: edits of each clip, the same number for each, all of the same structure (see
            `jax.tree.structure`).
        prompts: one for each clip, all of the same length; see `generate`.
        references: encoder states of each clip's reference; see `generate`.
        choice: how tokens are chosen.
        draws: a number for each clip; clips with the same number and seed draw the same tokens
            from the same logits. By default each clip has its own number.
        memory: bytes that may be used in addition to the model; by default a quarter of the
            device's.

    Returns:
        For each clip, one result for each edit.

    Raises:
        InputError: see `generate`; also if there are no clips or edits, clips have different
            numbers of edits, edits differ in structure, the beam is not smaller than the
            vocabulary, or prompts ask for timestamps in some clips only.
    """
    tokenizer = require_tokenizer(model)
    given = stack_prompts(
        model.config, tokenizer, prompts or [default_prompt(model)] * max(len(states), 1)
    )
    length = given.shape[1]
    # An edit that several rows share stays one object; see `stack_edits`.
    read = {
        id(edit): edit_of(edit, "decoder", model.config, length)
        for of_clip in edits
        for edit in of_clip
    }
    rows_of_clip = [[read[id(edit)] for edit in of_clip] for of_clip in edits]
    check_edits(model, states, rows_of_clip, references)
    choice.refuse_fallback()
    _check_beams(model.config, choice)
    if not any(edit.needs_reference for of_clip in rows_of_clip for edit in of_clip):
        references = None
    replicas = copies(model)
    if len(replicas) > 1:
        numbers = range(len(states)) if draws is None else draws
        clips = _Clips(states, references, rows_of_clip, prompts, numbers)
        return _on_copies(replicas, clips, choice, memory)
    n_clips, n_rows = len(states), len(edits[0])
    if len(given) != n_clips:
        raise InputError(f"There are {len(given)} prompts for {n_clips} clips: give each one.")
    max_tokens = model.config.max_tokens
    logit_filter = make_logit_filter(
        model.config, model.generation, tokenizer, given[0], choice.suppress
    )
    clips_at_once, rows_at_once = batch_sizes(
        model,
        n_clips,
        n_rows,
        n_tokens=padded_length(length, max_tokens)
        + limit_new_tokens(choice.max_new_tokens, length, max_tokens),
        n_streams=1 if references is None else 2,
        beam_size=choice.beam_size,
        memory=default_memory() if memory is None else memory,
    )
    results: list[list[Generated]] = [[] for _ in range(n_clips)]
    for first in range(0, n_clips, clips_at_once):
        clips = _filled(range(first, n_clips), clips_at_once)
        # `states[clips]` would be several programs.
        taken = [None if x is None else jnp.take(x, clips, 0) for x in (states, references)]
        cross = cross_keys_values(model.decoder, *taken)
        prompt = make_prompt(model.config, tokenizer, given[clips])
        for begin in range(0, n_rows, rows_at_once):
            rows = _filled(range(begin, n_rows), rows_at_once)
            some = stack_edits([[rows_of_clip[clip][row] for row in rows] for clip in clips])
            job = GenerationJob(model.decoder, cross, prompt, some, logit_filter)
            own = clips if draws is None else [draws[clip] for clip in clips]
            generated = _run(job, choice, np.asarray(own))
            for i, clip in enumerate(clips[: n_clips - first]):
                results[clip] += [
                    _unpack(tokenizer, given[clip], generated, i, j)
                    for j in range(min(len(rows), n_rows - begin))
                ]
    return results


@dataclasses.dataclass(frozen=True)
class _Clips:
    """What `generate_rows` is given for each clip."""

    states: Float[Array, "clip frame d_model"]
    references: Float[Array, "clip frame d_model"] | None
    edits: Sequence[Sequence[Edit]]
    prompts: Sequence[Sequence[int]] | None
    draws: Sequence[int]

    def part(self, clips: slice, rows: slice) -> "_Clips":
        """Choose some clips, and some edits of each."""
        return _Clips(
            self.states[clips],
            None if self.references is None else self.references[clips],
            [of_clip[rows] for of_clip in self.edits[clips]],
            None if self.prompts is None else self.prompts[clips],
            self.draws[clips],
        )


def _on_copies(
    replicas: Sequence[Whisper], clips: _Clips, choice: Choice, memory: int | None
) -> list[list[Generated]]:
    """Generate some clips on each copy of the model; some edits of every clip if clips are few."""
    n_clips, n_rows, every = len(clips.edits), len(clips.edits[0]), slice(None)
    by_clip = n_clips >= min(n_rows, len(replicas))
    ends = np.linspace(0, n_clips if by_clip else n_rows, len(replicas) + 1).astype(int)
    parts = [
        slice(start, stop) for start, stop in itertools.pairwise(ends.tolist()) if start < stop
    ]

    def run(own: Whisper, part: slice) -> list[list[Generated]]:
        some = clips.part(part, every) if by_clip else clips.part(every, part)
        states, references, edits = move_to(own, (some.states, some.references, some.edits))
        return generate_rows(
            own,
            states,
            edits,
            prompts=some.prompts,
            references=references,
            choice=choice,
            draws=some.draws,
            memory=memory,
        )

    found = side_by_side(replicas, run, parts)
    if by_clip:
        return [of_clip for part in found for of_clip in part]
    return [[one for part in of_clip for one in part] for of_clip in zip(*found, strict=True)]


def _run(job: GenerationJob, choice: Choice, draws: Int[np.ndarray, " clip"]) -> GeneratedRows:
    if choice.beam_size > 1:
        return search(job, choice.max_new_tokens, choice.beam_size)
    return roll_out(job, make_sampling(choice, draws), choice.max_new_tokens)


def _check_beams(config: WhisperConfig, choice: Choice) -> None:
    """Raise `InputError` if the search extends a sequence by more tokens than there are."""
    if choice.beam_size >= config.d_vocab:
        raise InputError(
            f"beam_size is {choice.beam_size}: expected less than the {config.d_vocab} tokens of "
            "the vocabulary."
        )


def check_edits(
    model: Whisper,
    states: Float[Array, "clip frame d_model"],
    edits: Sequence[Sequence[Edit]],
    references: Array | None,
) -> None:
    """Raise `InputError` if clips differ in their number of edits, or an edit lacks its inputs."""
    if isinstance(states, Sequence):
        raise InputError("The encoder states are a list: stack them to [clip, frame, d_model].")
    if not edits or len(states) != len(edits) or len({len(of_clip) for of_clip in edits}) != 1:
        raise InputError(
            f"There are {len(states)} clips and edits of {len(edits)}: give each clip as many "
            "edits."
        )
    if not edits[0]:
        raise InputError("There are no edits: give at least one for each clip.")
    check_states(model.config, states[0])
    if references is not None and references.shape != states.shape:
        raise InputError(
            f"The references are {references.shape} and the clips {states.shape}: give each clip "
            "one."
        )
    for edit in {id(edit): edit for of_clip in edits for edit in of_clip}.values():
        edit.check("decoder", model.config)
        if edit.needs_reference and references is None:
            raise InputError("The edit takes values from a reference run: give its clip.")


@jax.jit
def cross_keys_values(
    decoder: Decoder,
    states: Float[Array, "clip frame d_model"],
    references: Float[Array, "clip frame d_model"] | None,
) -> CrossKV:
    """Compute the cross-attention keys and values of each clip and its reference, if it has one."""
    # The clip axis comes after that of the layers, which are scanned: else each step transposes.
    of_clips = jax.vmap(decoder.cross_keys_values, out_axes=1)
    return CrossKV(of_clips(states), None if references is None else of_clips(references))


def _filled(numbers: range, size: int) -> Int[np.ndarray, " some"]:
    """Take `size` numbers, repeating the last one if needed: every batch has the same shape."""
    return np.minimum(np.arange(size) + numbers.start, numbers.stop - 1)


def _unpack(
    tokenizer: Tokenizer,
    prompt: Int[np.ndarray, " pos"],
    generated: GeneratedRows,
    clip: int,
    row: int,
) -> Generated:
    finished, length = bool(generated.finished[clip, row]), int(generated.lengths[clip, row])
    log_probs = generated.log_probs[clip, row, : length + finished]
    if np.isnan(log_probs).any():
        raise InputError("The logits are no numbers: the edit, or the model, makes them infinite.")
    tokens = tuple(int(token) for token in generated.tokens[clip, row, :length])
    return Generated(
        prompt=tuple(int(token) for token in prompt),
        tokens=tokens,
        log_probs=tuple(float(p) for p in log_probs),
        finished=finished,
        no_speech_prob=float(generated.no_speech[clip, row]),
        text=tokenizer.decode(tokens),
    )
