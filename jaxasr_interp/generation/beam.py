"""Beam search, as openai/whisper does it, for many rows at once.

Each step extends every sequence by its likeliest tokens and ranks all extensions by their summed
log-probability. Extensions that end the text and rank above the last sequence that goes on are set
aside, at most `beam_size` of them; the best `beam_size` of the others go on. The search ends when
`beam_size` sequences are set aside; the result is the one with the highest mean log-probability per
token.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxasr_interp.generation.batch import GeneratedRows, GenerationJob
from jaxasr_interp.generation.kv_cache import CrossKV, KVCache, decode_step, layers_in_loop, prefill
from jaxasr_interp.generation.logit_filters import LogitFilter
from jaxasr_interp.pytree import pytree_dataclass
from jaxasr_interp.runtime.transforms import GENERATE_FIXED, refuse_traced


@pytree_dataclass
class Sequences:
    """Some token sequences of one row with the log-probability of each token.

    `score` is the sum of a sequence's log-probabilities; -inf where there is no sequence.
    """

    tokens: Int[Array, "beam step"]
    log_probs: Float[Array, "beam step"]
    score: Float[Array, " beam"]
    length: Int[Array, " beam"]


@pytree_dataclass
class Beams:
    """The search of one row: sequences that go on, their caches, and finished sequences."""

    going: Sequences
    finished: Sequences
    cache: KVCache
    no_speech: Float[Array, ""]


def search(job: GenerationJob, max_new_tokens: int, beam_size: int) -> GeneratedRows:
    """Search for every row's likeliest sequence.

    Args:
        job: the rows.
        max_new_tokens: largest number of tokens to generate.
        beam_size: number of sequences that are kept.
    """
    found = _search(job, max_new_tokens=job.limit(max_new_tokens), beam_size=beam_size)
    refuse_traced(found, "Generation", GENERATE_FIXED)
    best, finished, no_speech = jax.device_get(found)
    return GeneratedRows(best.tokens, best.log_probs, best.length, finished, no_speech)


@functools.partial(jax.jit, static_argnames=("max_new_tokens", "beam_size"))
def _search(
    job: GenerationJob, *, max_new_tokens: int, beam_size: int
) -> tuple[Sequences, Bool[Array, "clip row"], Float[Array, "clip row"]]:
    decoder, prompt, logit_filter = job.decoder, job.prompt, job.logit_filter
    split = layers_in_loop(decoder.blocks, job.cross, decoder.n_layers)
    capacity = prompt.tokens.shape[1] + max_new_tokens

    def begin(own: tuple[Array, ...], tokens: Array, cross: CrossKV) -> Beams:
        reads = prompt.length - 1, prompt.start
        (first, start), cache = prefill(
            decoder, tokens, reads, cross, job.edits.edit(own), capacity
        )
        none = Sequences(
            jnp.full((beam_size, max_new_tokens), logit_filter.end_of_text, jnp.int32),
            jnp.zeros((beam_size, max_new_tokens), first.dtype),
            jnp.full(beam_size, -jnp.inf, first.dtype),
            jnp.zeros(beam_size, jnp.int32),
        )
        # All sequences are the same at first, so only one of them may go on.
        one = Sequences(none.tokens, none.log_probs, none.score.at[0].set(0), none.length)
        caches = jax.tree.map(lambda x: jnp.broadcast_to(x, (beam_size, *x.shape)), cache)
        no_speech = jax.nn.softmax(start)[logit_filter.no_speech]
        same = jnp.broadcast_to(first, (beam_size, len(first)))
        return _extend(
            Beams(one, none, caches, no_speech), same, logit_filter, jnp.zeros((), jnp.int32)
        )

    def at_work(state: tuple[Array, Beams]) -> Array:
        step, beams = state
        return (step < max_new_tokens) & ~jnp.isfinite(beams.finished.score).all(-1).all()

    def advance(state: tuple[Array, Beams]) -> tuple[Array, Beams]:
        step, beams = state
        blocks, layers, step = split(step)
        position = prompt.length + step - 1

        def one(beams: Beams, own: tuple[Array, ...], cross: list[CrossKV]) -> Beams:
            edit = job.edits.edit(own)

            def read(token: Array, cache: KVCache) -> tuple[Array, KVCache]:
                return decode_step(decoder, blocks, token, position, cross, cache, edit)

            logits, cache = jax.vmap(read)(beams.going.tokens[:, step - 1], beams.cache)
            now = Beams(beams.going, beams.finished, cache, beams.no_speech)
            done = jnp.isfinite(beams.finished.score).all()
            later = _extend(now, logits, logit_filter, step)
            return jax.tree.map(lambda old, new: jnp.where(done, old, new), now, later)

        of_clip = jax.vmap(one, in_axes=(0, 0, None))
        return step + 1, jax.vmap(of_clip)(beams, job.edits.own, layers)

    of_clip = jax.vmap(begin, in_axes=(0, None, None), axis_size=job.edits.count)
    beams = jax.vmap(of_clip, in_axes=(0, 0, 1))(job.edits.own, prompt.tokens, job.cross)
    _, beams = jax.lax.while_loop(at_work, advance, (jnp.ones((), jnp.int32), beams))
    best, finished = jax.vmap(jax.vmap(_best))(beams)
    return best, finished, beams.no_speech


def _extend(
    beams: Beams,
    logits: Float[Array, "beam d_vocab"],
    logit_filter: LogitFilter,
    step: Int[Array, ""],
) -> Beams:
    """Rank the extensions of all sequences: set finished ones aside, let the best others go on."""
    going, size = beams.going, len(logits)
    allowed = jax.vmap(logit_filter, in_axes=(0, 0, None))(logits, going.tokens, step)
    log_probs, tokens = jax.lax.top_k(jax.nn.log_softmax(allowed), size + 1)
    parent = jnp.repeat(jnp.arange(size), size + 1)
    log_probs, tokens = log_probs.reshape(-1), tokens.reshape(-1).astype(jnp.int32)
    scores, order = jax.lax.top_k(going.score[parent] + log_probs, len(tokens))
    parent, log_probs, tokens = parent[order], log_probs[order], tokens[order]
    ends = tokens == logit_filter.end_of_text
    # A sequence that ends counts only if it ranks before the last of those that go on.
    goes_on = ~ends & (jnp.cumsum(~ends) <= size)
    ends &= jnp.cumsum(~ends) < size
    candidates = Sequences(
        going.tokens[parent].at[:, step].set(tokens),
        going.log_probs[parent].at[:, step].set(log_probs),
        scores,
        jnp.where(ends, step, step + 1),
    )
    (kept,) = jnp.nonzero(goes_on, size=size)
    set_aside = jnp.where(ends, scores, -jnp.inf)
    # Sequences that were set aside in earlier steps keep their places.
    held = jnp.isfinite(beams.finished.score)
    rank = jnp.concatenate([jnp.where(held, jnp.inf, -jnp.inf), set_aside])
    _, places = jax.lax.top_k(rank, size)
    everything = jax.tree.map(
        lambda old, new: jnp.concatenate([old, new]),
        beams.finished,
        Sequences(candidates.tokens, candidates.log_probs, set_aside, candidates.length),
    )
    return Beams(
        going=jax.tree.map(lambda x: x[kept], candidates),
        finished=jax.tree.map(lambda x: x[places], everything),
        cache=jax.tree.map(lambda x: x[parent[kept]], beams.cache),
        no_speech=beams.no_speech,
    )


def _best(beams: Beams) -> tuple[Sequences, Bool[Array, ""]]:
    """Choose the sequence of highest mean log-probability.

    If fewer than `beam_size` sequences are finished, the best unfinished ones compete too.
    """
    size = len(beams.finished.score)
    held = jnp.isfinite(beams.finished.score)
    room = size - held.sum(dtype=jnp.int32)
    by_score = jnp.argsort(-beams.going.score)
    place = jnp.zeros(size, jnp.int32).at[by_score].set(jnp.arange(size, dtype=jnp.int32))
    candidates = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), beams.finished, beams.going)
    is_held = jnp.concatenate([held, place < room])
    mean = candidates.score / jnp.maximum(candidates.length, 1).astype(candidates.score.dtype)
    best = jnp.argmax(jnp.where(is_held, mean, -jnp.inf))
    return jax.tree.map(lambda x: x[best], candidates), best < size
