"""Greedy and sampled generation of many rows at once, in one compiled loop.

Rows are interventions × clips, `[clip, row]`; the rows of a clip share its cross-attention keys and
values. The loop runs on the device until most rows are finished or its cache is full. Then the
unfinished rows are gathered in arrays of a quarter of the size, and the loop goes on.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxasr_interp.generation.batch import GeneratedRows, GenerationJob
from jaxasr_interp.generation.kv_cache import CrossKV, KVCache, decode_step, layers_in_loop, prefill
from jaxasr_interp.generation.logit_filters import LogitFilter
from jaxasr_interp.generation.options import Choice
from jaxasr_interp.pytree import pytree_dataclass, replace, static
from jaxasr_interp.runtime.transforms import GENERATE_FIXED, refuse_traced

_SHRINK = 4
_WORTH_SHRINKING = 16
_FIRST_CAPACITY = 64
_SMALL_MEMORY = 64 * 2**20


@pytree_dataclass
class Sampling:
    """How a token is chosen: the most probable one, or one drawn at a temperature.

    Attributes:
        temperature: tokens are drawn with `p ∝ exp(logits / temperature)`.
        keys: random key of each clip; all rows of a clip use the same key.
        greedy: whether to take the most probable token.
    """

    temperature: Float[Array, ""]
    keys: Array
    greedy: bool = static()


def make_sampling(choice: Choice, draws: Int[np.ndarray, " clip"]) -> Sampling:
    """Make the sampling of clips; those with the same number and seed draw the same tokens."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(choice.seed), draws)
    temperature = jnp.asarray(choice.temperature, jnp.float32)
    return Sampling(temperature, keys, choice.temperature == 0)


@pytree_dataclass
class Row:
    """The state of one row: the tokens generated so far, and the cache of its decoder."""

    own: tuple[Array, ...]
    tokens: Int[Array, " step"]
    log_probs: Float[Array, " step"]
    finished: Bool[Array, ""]
    no_speech: Float[Array, ""]
    cache: KVCache


def roll_out(job: GenerationJob, sampling: Sampling, max_new_tokens: int) -> GeneratedRows:
    """Generate tokens in every row until all rows are finished or at the limit.

    Args:
        job: the rows.
        sampling: how tokens are chosen.
        max_new_tokens: largest number of tokens to generate.
    """
    n_clips, padded = job.prompt.tokens.shape
    n_rows, length, max_new_tokens = (
        job.edits.count,
        int(job.prompt.length),
        job.limit(max_new_tokens),
    )
    most = padded + max_new_tokens
    cross = job.cross
    row_bytes = sum(x.nbytes for x in jax.tree.leaves(cross)) // cross.clip.k.shape[-2] // n_clips
    small = n_clips * n_rows * row_bytes * most <= _SMALL_MEMORY
    capacity = most if small else min(most, max(_FIRST_CAPACITY, 2 * padded))
    rows = begin(job, sampling, max_new_tokens=max_new_tokens, capacity=capacity)
    # A plain function may hold a traced value that cannot be seen before.
    refuse_traced(rows, "Generation", GENERATE_FIXED)
    # Each `Row` holds its own leaves now.
    job = replace(job, edits=replace(job.edits, own=()))
    shape = (n_clips, n_rows)
    generated = GeneratedRows(
        np.zeros((*shape, max_new_tokens), np.int32),
        np.zeros((*shape, max_new_tokens), rows.log_probs.dtype),
        np.zeros(shape, int),
        np.zeros(shape, bool),
        np.asarray(rows.no_speech),
    )
    clip, row = np.indices(shape)
    real = np.ones(shape, bool)
    step = jnp.ones((), jnp.int32)
    while True:
        clips_left, rows_left = map(_fewer, real.shape)
        if real.size < _WORTH_SHRINKING:
            clips_left = rows_left = 0
        step, rows = _advance(job, rows, sampling, step, clips_left, rows_left)
        tokens, log_probs, finished = jax.device_get((rows.tokens, rows.log_probs, rows.finished))
        at = clip[real], row[real]
        generated.tokens[at] = tokens[real]
        generated.log_probs[at] = log_probs[real]
        generated.finished[at] = finished[real]
        ends = (tokens == int(job.logit_filter.end_of_text)).argmax(-1)
        generated.lengths[at] = np.where(finished, ends, int(step))[real]
        busy = ~finished & real
        if not busy.any() or int(step) == max_new_tokens:
            return generated
        if length + int(step) - 1 == capacity:
            capacity = min(most, 2 * capacity)
            rows = _grow(rows, capacity)
        clips, order = _choose(busy)
        if order.size < real.size:
            job, sampling, rows = _keep(job, sampling, rows, clips, order)
            clip, row, real = (x[clips[:, None], order] for x in (clip, row, busy))


def _fewer(size: int) -> int:
    """Return the number of unfinished ones at which smaller arrays are worth their cost."""
    return math.ceil(size / _SHRINK) if size > 1 else 0


def _choose(busy: Bool[np.ndarray, "clip row"]) -> tuple[Int[np.ndarray, " some"], np.ndarray]:
    """Choose the clips and rows that stay, in arrays of few sizes; unfinished ones come first."""
    clips = np.argsort(~busy.any(1), kind="stable")[: _size(int(busy.any(1).sum()), len(busy))]
    order = np.argsort(~busy[clips], axis=1, kind="stable")
    return clips, order[:, : _size(int(busy.sum(1).max()), busy.shape[1])]


def _size(needed: int, size: int) -> int:
    while (fewer := _fewer(size)) >= needed and 0 < fewer < size:
        size = fewer
    return size


@functools.partial(jax.jit, static_argnames=("max_new_tokens", "capacity"))
def begin(job: GenerationJob, sampling: Sampling, *, max_new_tokens: int, capacity: int) -> Row:
    """Run the prompt of every row and choose its first token.

    Args:
        job: the rows.
        sampling: how tokens are chosen.
        max_new_tokens: number of tokens that each row has room for.
        capacity: number of positions that fit each row's cache.

    Returns:
        The rows, `[clip, row, ...]`.
    """
    prompt, logit_filter = job.prompt, job.logit_filter

    def begin_one(own: tuple[Array, ...], tokens: Array, cross: CrossKV, key: Array) -> Row:
        reads = prompt.length - 1, prompt.start
        (first, start), cache = prefill(
            job.decoder, tokens, reads, cross, job.edits.edit(own), capacity
        )
        row = Row(
            own=own,
            tokens=jnp.full(max_new_tokens, logit_filter.end_of_text, jnp.int32),
            log_probs=jnp.zeros(max_new_tokens, first.dtype),
            finished=jnp.zeros((), bool),
            no_speech=jax.nn.softmax(start)[logit_filter.no_speech],
            cache=cache,
        )
        return _write(row, first, logit_filter, sampling, key, jnp.zeros((), jnp.int32))

    # The axis size is needed because rows may have no leaves of their own.
    of_clip = jax.vmap(begin_one, in_axes=(0, None, None, None), axis_size=job.edits.count)
    of_clips = jax.vmap(of_clip, in_axes=(0, 0, 1, 0))
    return of_clips(job.edits.own, prompt.tokens, job.cross, sampling.keys)


def advance_rows(
    job: GenerationJob, sampling: Sampling
) -> Callable[[tuple[Array, Row]], tuple[Array, Row]]:
    """Make the function of `(step, rows)` that generates the token `step` of every row.

    It returns the next step and the rows; it is made before a loop, which then copies no layers.
    """
    split = layers_in_loop(job.decoder.blocks, job.cross, job.decoder.n_layers)

    def advance(state: tuple[Array, Row]) -> tuple[Array, Row]:
        step, rows = state
        blocks, layers, step = split(step)
        position = job.prompt.length + step - 1

        def one(row: Row, cross: list[CrossKV], key: Array) -> Row:
            edit, token = job.edits.edit(row.own), row.tokens[step - 1]
            logits, cache = decode_step(
                job.decoder, blocks, token, position, cross, row.cache, edit
            )
            return _write(replace(row, cache=cache), logits, job.logit_filter, sampling, key, step)

        of_clip = jax.vmap(one, in_axes=(0, None, None))
        return step + 1, jax.vmap(of_clip)(rows, layers, sampling.keys)

    return advance


@functools.partial(jax.jit, donate_argnames="rows")
def _advance(
    job: GenerationJob,
    rows: Row,
    sampling: Sampling,
    step: Int[Array, ""],
    clips_left: Int[Array, ""],
    rows_left: Int[Array, ""],
) -> tuple[Int[Array, ""], Row]:
    advance = advance_rows(job, sampling)
    max_new_tokens, capacity = rows.tokens.shape[-1], rows.cache.run[0].k.shape[-2]

    def at_work(state: tuple[Array, Row]) -> Array:
        step, rows = state
        busy = ~rows.finished
        many = (busy.any(1).sum() > clips_left) & (busy.sum(1).max() > rows_left)
        room = job.prompt.length + step - 1 < capacity
        return busy.any() & many & room & (step < max_new_tokens)

    return jax.lax.while_loop(at_work, advance, (step, rows))


def _write(
    row: Row,
    logits: Float[Array, " d_vocab"],
    logit_filter: LogitFilter,
    sampling: Sampling,
    key: Array,
    step: Int[Array, ""],
) -> Row:
    """Choose and store the next token; a finished row gets end-of-text at every further step."""
    allowed = logit_filter(logits, row.tokens, step)
    if sampling.greedy:
        token = first_largest(allowed)
    else:
        scaled = allowed / sampling.temperature.astype(allowed.dtype)
        token = jax.random.categorical(jax.random.fold_in(key, step), scaled).astype(jnp.int32)
    token = jnp.where(row.finished, logit_filter.end_of_text, token)
    log_prob = allowed[token] - jax.nn.logsumexp(allowed)
    return replace(
        row,
        tokens=row.tokens.at[step].set(token),
        log_probs=row.log_probs.at[step].set(
            jnp.where(row.finished, jnp.zeros_like(log_prob), log_prob)
        ),
        finished=row.finished | (token == logit_filter.end_of_text),
    )


def first_largest(x: Float[Array, " d_vocab"]) -> Int[Array, ""]:
    """Compute `argmax`; this is faster on CPU than XLA's, which takes the numbers one by one."""
    ids = jnp.arange(len(x), dtype=jnp.int32)
    return jnp.where(x == x.max(), ids, len(x)).min().astype(jnp.int32)


@functools.partial(jax.jit, static_argnames="capacity")
def _grow(rows: Row, capacity: int) -> Row:
    def pad(x: Array) -> Array:
        return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, capacity - x.shape[-2]), (0, 0)])

    return replace(rows, cache=jax.tree.map(pad, rows.cache))


@jax.jit
def _keep(
    job: GenerationJob,
    sampling: Sampling,
    rows: Row,
    clips: Int[Array, " some"],
    order: Int[Array, "some few"],
) -> tuple[GenerationJob, Sampling, Row]:
    """Keep some rows of some clips."""
    cross = jax.tree.map(lambda x: x[:, clips], job.cross)
    prompt = replace(job.prompt, tokens=job.prompt.tokens[clips])
    return (
        replace(job, cross=cross, prompt=prompt),
        replace(sampling, keys=sampling.keys[clips]),
        jax.tree.map(lambda x: jax.vmap(lambda row, few: row[few])(x[clips], order), rows),
    )
