"""Greedy and sampled generation of many rows at once, in one compiled loop.

Rows are interventions × clips, `[clip, row]`; the rows of a clip share its cross-attention keys and
values. The loop runs on the device until most rows are finished or its memory is full; then the
rows still at work are put together, in arrays of a quarter of the size, and it goes on.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxasr_interp.generation.cached import (
    Heard,
    Memory,
    next_logits,
    read_prompt,
    read_token,
    unstacked,
)
from jaxasr_interp.generation.rows import EditRows
from jaxasr_interp.model import Decoder
from jaxasr_interp.pytree import pytree_dataclass, replace, static
from jaxasr_interp.suppression import Rules

_SHRINK = 4
_WORTH_SHRINKING = 16
_FIRST_CAPACITY = 64
_SMALL_MEMORY = 64 * 2**20


@pytree_dataclass
class Prompt:
    """What every row begins with.

    Attributes:
        tokens: of each clip, padded.
        length: how many of them are real.
        start: where the start-of-transcript token is.
    """

    tokens: Int[Array, "clip pos"]
    length: Int[Array, ""]
    start: Int[Array, ""]


@pytree_dataclass
class Sampling:
    """How a token is chosen: the most probable one, or one drawn at a temperature.

    Attributes:
        temperature: `p ∝ exp(logits / temperature)`.
        keys: of each clip; its rows draw alike.
        greedy: the most probable one.
    """

    temperature: Float[Array, ""]
    keys: Array
    greedy: bool = static()


@pytree_dataclass
class Row:
    """One row's state: what it has written, and what its decoder remembers."""

    own: tuple[Array, ...]
    tokens: Int[Array, " step"]
    log_probs: Float[Array, " step"]
    finished: Bool[Array, ""]
    no_speech: Float[Array, ""]
    memory: Memory


@dataclasses.dataclass(frozen=True)
class Written:
    """What the rows wrote; `lengths` does not count end-of-text."""

    tokens: Int[np.ndarray, "clip row step"]
    log_probs: Float[np.ndarray, "clip row step"]
    lengths: Int[np.ndarray, "clip row"]
    finished: Bool[np.ndarray, "clip row"]
    no_speech: Float[np.ndarray, "clip row"]


def roll_out(
    decoder: Decoder,
    heard: Heard,
    prompt: Prompt,
    edits: EditRows,
    rules: Rules,
    sampling: Sampling,
    n_rows: int,
    max_new: int,
) -> Written:
    """Let every row write until all are finished or at the limit.

    Args:
        decoder: the decoder.
        heard: of each clip, `[layer, clip, ...]`.
        prompt: what the rows begin with.
        edits: one a row.
        rules: which tokens may follow.
        sampling: how they are chosen.
        n_rows: rows of each clip.
        max_new: generate at most so many tokens.
    """
    n_clips, padded = prompt.tokens.shape
    length = int(prompt.length)
    max_new = min(max_new, len(decoder.pos_embed[...]) - length + 1)
    most = padded + max_new
    row_bytes = sum(x.nbytes for x in jax.tree.leaves(heard)) // heard.clip.k.shape[-2] // n_clips
    small = n_clips * n_rows * row_bytes * most <= _SMALL_MEMORY
    capacity = most if small else min(most, max(_FIRST_CAPACITY, 2 * padded))
    shared = replace(edits, own=())
    rows = _begin(
        decoder, heard, prompt, edits, rules, sampling, n_rows, max_new=max_new, capacity=capacity
    )
    shape = (n_clips, n_rows)
    written = Written(
        np.zeros((*shape, max_new), np.int32),
        np.zeros((*shape, max_new), rows.log_probs.dtype),
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
        step, rows = _advance(
            decoder, heard, prompt, rows, shared, rules, sampling, step, clips_left, rows_left
        )
        tokens, log_probs, finished = jax.device_get((rows.tokens, rows.log_probs, rows.finished))
        at = clip[real], row[real]
        written.tokens[at] = tokens[real]
        written.log_probs[at] = log_probs[real]
        written.finished[at] = finished[real]
        ends = (tokens == int(rules.end_of_text)).argmax(-1)
        written.lengths[at] = np.where(finished, ends, int(step))[real]
        busy = ~finished & real
        if not busy.any() or int(step) == max_new:
            return written
        if length + int(step) - 1 == capacity:
            capacity = min(most, 2 * capacity)
            rows = _grow(rows, capacity)
        clips, order = _choose(busy)
        if order.size < real.size:
            heard, prompt, sampling, rows = _keep(heard, prompt, sampling, rows, clips, order)
            clip, row, real = (x[clips[:, None], order] for x in (clip, row, busy))


def _fewer(size: int) -> int:
    """How many that are still at work make it worth going on in smaller arrays."""
    return math.ceil(size / _SHRINK) if size > 1 else 0


def _choose(busy: Bool[np.ndarray, "clip row"]) -> tuple[Int[np.ndarray, " some"], np.ndarray]:
    """The clips and rows to go on with, in arrays of few sizes; those at work come first."""
    clips = np.argsort(~busy.any(1), kind="stable")[: _size(int(busy.any(1).sum()), len(busy))]
    order = np.argsort(~busy[clips], axis=1, kind="stable")
    return clips, order[:, : _size(int(busy.sum(1).max()), busy.shape[1])]


def _size(needed: int, size: int) -> int:
    while (fewer := _fewer(size)) >= needed and 0 < fewer < size:
        size = fewer
    return size


@functools.partial(jax.jit, static_argnames=("n_rows", "max_new", "capacity"))
def _begin(
    decoder: Decoder,
    heard: Heard,
    prompt: Prompt,
    edits: EditRows,
    rules: Rules,
    sampling: Sampling,
    n_rows: int,
    *,
    max_new: int,
    capacity: int,
) -> Row:
    def begin(own, tokens, heard, key) -> Row:
        edit = edits.edit(own)
        resid, beside, memory = read_prompt(decoder, tokens, heard, edit, capacity)

        def logits_at(position):
            row = None if beside is None else beside[position]
            return next_logits(decoder, resid[position], row, edit, position)

        first = logits_at(prompt.length - 1)
        row = Row(
            own=own,
            tokens=jnp.full(max_new, rules.end_of_text, jnp.int32),
            log_probs=jnp.zeros(max_new, first.dtype),
            finished=jnp.zeros((), bool),
            no_speech=jax.nn.softmax(logits_at(prompt.start))[rules.no_speech],
            memory=memory,
        )
        return _write(row, first, rules, sampling, key, jnp.zeros((), jnp.int32))

    # One of each clip's rows has no arrays of its own to be mapped over.
    of_clip = jax.vmap(begin, in_axes=(0, None, None, None), axis_size=n_rows)
    return jax.vmap(of_clip, in_axes=(0, 0, 1, 0))(edits.own, prompt.tokens, heard, sampling.keys)


@functools.partial(jax.jit, donate_argnames="rows")
def _advance(
    decoder: Decoder,
    heard: Heard,
    prompt: Prompt,
    rows: Row,
    shared: EditRows,
    rules: Rules,
    sampling: Sampling,
    step: Int[Array, ""],
    clips_left: Int[Array, ""],
    rows_left: Int[Array, ""],
) -> tuple[Int[Array, ""], Row]:
    blocks = unstacked(decoder.blocks, decoder.n_layers)
    layers = unstacked(heard, decoder.n_layers)
    max_new, capacity = rows.tokens.shape[-1], rows.memory.run[0].k.shape[-2]

    def at_work(state: tuple[Array, Row]) -> Array:
        step, rows = state
        busy = ~rows.finished
        many = (busy.any(1).sum() > clips_left) & (busy.sum(1).max() > rows_left)
        room = prompt.length + step - 1 < capacity
        return busy.any() & many & room & (step < max_new)

    def advance(state: tuple[Array, Row]) -> tuple[Array, Row]:
        step, rows = state
        position = prompt.length + step - 1

        def one(row: Row, heard: list[Heard], key: Array) -> Row:
            edit = shared.edit(row.own)
            token = row.tokens[step - 1]
            resid, beside, memory = read_token(
                decoder, blocks, token, position, heard, row.memory, edit
            )
            beside = None if beside is None else beside[0]
            logits = next_logits(decoder, resid[0], beside, edit, position)
            return _write(replace(row, memory=memory), logits, rules, sampling, key, step)

        of_clip = jax.vmap(one, in_axes=(0, None, None))
        return step + 1, jax.vmap(of_clip)(rows, layers, sampling.keys)

    return jax.lax.while_loop(at_work, advance, (step, rows))


def _write(
    row: Row,
    logits: Float[Array, " d_vocab"],
    rules: Rules,
    sampling: Sampling,
    key: Array,
    step: Int[Array, ""],
) -> Row:
    """Choose the next token and write it down; a finished row goes on writing end-of-text."""
    allowed = rules(logits, row.tokens, step)
    if sampling.greedy:
        token = first_largest(allowed)
    else:
        scaled = allowed / sampling.temperature.astype(allowed.dtype)
        token = jax.random.categorical(jax.random.fold_in(key, step), scaled).astype(jnp.int32)
    token = jnp.where(row.finished, rules.end_of_text, token)
    log_prob = allowed[token] - jax.nn.logsumexp(allowed)
    return replace(
        row,
        tokens=row.tokens.at[step].set(token),
        log_probs=row.log_probs.at[step].set(
            jnp.where(row.finished, jnp.zeros_like(log_prob), log_prob)
        ),
        finished=row.finished | (token == rules.end_of_text),
    )


def first_largest(x: Float[Array, " d_vocab"]) -> Int[Array, ""]:
    """`argmax`, but fast on CPU, where XLA's goes through the numbers one by one."""
    ids = jnp.arange(len(x), dtype=jnp.int32)
    return jnp.where(x == x.max(), ids, len(x)).min().astype(jnp.int32)


@functools.partial(jax.jit, static_argnames="capacity")
def _grow(rows: Row, capacity: int) -> Row:
    def pad(x: Array) -> Array:
        return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, capacity - x.shape[-2]), (0, 0)])

    return replace(rows, memory=jax.tree.map(pad, rows.memory))


@jax.jit
def _keep(
    heard: Heard,
    prompt: Prompt,
    sampling: Sampling,
    rows: Row,
    clips: Int[Array, " some"],
    order: Int[Array, "some few"],
) -> tuple[Heard, Prompt, Sampling, Row]:
    """Some rows of some clips."""
    kept = jax.tree.map(lambda x: jax.vmap(lambda row, few: row[few])(x[clips], order), rows)
    return (
        jax.tree.map(lambda x: x[:, clips], heard),
        replace(prompt, tokens=prompt.tokens[clips]),
        replace(sampling, keys=sampling.keys[clips]),
        kept,
    )
