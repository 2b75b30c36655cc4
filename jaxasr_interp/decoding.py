"""Greedy generation with a key/value cache, one compiled loop for a batch of clips."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxasr_interp.config import WhisperConfig
from jaxasr_interp.edits import Edit, as_pytree, check_edit, identity
from jaxasr_interp.errors import InputError
from jaxasr_interp.forward import check_states, check_tokens
from jaxasr_interp.model import Decoder, KeysValues, Whisper, write_rows
from jaxasr_interp.pytree import pytree_dataclass
from jaxasr_interp.suppression import Rules, make_rules
from jaxasr_interp.tokens import Tokenizer

MAX_NEW_TOKENS = 224
_SMALLEST_PROMPT = 8


@dataclasses.dataclass(frozen=True)
class Generated:
    """One generated token sequence.

    Attributes:
        prompt: the tokens that were given.
        tokens: the tokens that were generated, without end-of-text.
        log_probs: natural log-probability of each generated token, and of end-of-text if it came,
            among the tokens that were allowed.
        finished: whether end-of-text came before the limit.
        no_speech_prob: probability of the no-speech token at the start of the transcript.
        text: the tokens as text, without special tokens and timestamps.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    finished: bool
    no_speech_prob: float
    text: str

    @property
    def mean_log_prob(self) -> float:
        """Sum of `log_probs` over `len(tokens) + 1`, as openai/whisper defines it."""
        return sum(self.log_probs) / (len(self.tokens) + 1)


def generate(
    model: Whisper,
    states: Float[Array, "frame d_model"],
    *,
    prompt: Sequence[int] | None = None,
    suppress: bool = True,
    max_new_tokens: int = MAX_NEW_TOKENS,
    edit: Edit = identity,
) -> Generated:
    """Write the transcript of one encoded clip, the most probable token at each step.

    Args:
        model: a model with a tokenizer.
        states: encoder states, from `encode`.
        prompt: tokens to start from, by default `model.tokenizer.prompt()`. A prompt without the
            no-timestamps token asks for timestamps, which then follow openai/whisper's rules.
        suppress: leave out the tokens that the checkpoint's generation settings forbid; `False` is
            pure argmax.
        max_new_tokens: generate at most so many; the decoder's context is a further limit.
        edit: `edit(site, layer, value) -> value`, called at every decoder site of the prompt and of
            every step (`value` then has one position).

    Returns:
        Tokens, text and log-probabilities.

    Raises:
        InputError: the model has no tokenizer, or the prompt or states do not fit it.
    """
    prompts = None if prompt is None else [prompt]
    return generate_batch(
        model,
        states[None],
        prompts=prompts,
        suppress=suppress,
        max_new_tokens=max_new_tokens,
        edit=edit,
    )[0]


def generate_batch(
    model: Whisper,
    states: Float[Array, "batch frame d_model"],
    *,
    prompts: Sequence[Sequence[int]] | None = None,
    suppress: bool = True,
    max_new_tokens: int = MAX_NEW_TOKENS,
    edit: Edit = identity,
) -> list[Generated]:
    """Write the transcripts of several encoded clips together.

    Args:
        model: a model with a tokenizer.
        states: encoder states of each clip.
        prompts: one for each clip, all of the same length; see `generate`.
        suppress: see `generate`.
        max_new_tokens: see `generate`.
        edit: see `generate`; it sees one clip at a time.

    Returns:
        One result for each clip.

    Raises:
        InputError: the model has no tokenizer, or the prompts or states do not fit it.
    """
    tokenizer = require_tokenizer(model)
    check_states(model.config, states[0])
    check_edit(edit, "decoder")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}: expected at least 1.")
    rows = [tokenizer.prompt()] * len(states) if prompts is None else prompts
    given = _stack_prompts(model.config, rows, len(states))
    length = given.shape[1]
    padded = np.zeros((len(given), _padded_length(length, model.config.max_tokens)), np.int32)
    padded[:, :length] = given
    start = np.flatnonzero(given[0] == tokenizer.start_of_transcript)
    outputs = _generate(
        model.decoder,
        states,
        jnp.asarray(padded),
        jnp.asarray(length, jnp.int32),
        jnp.asarray(start[-1] if len(start) else 0, jnp.int32),
        make_rules(model.config, model.generation, tokenizer, given[0], suppress),
        as_pytree(edit),
        max_new_tokens,
    )
    return _unpack(tokenizer, given, jax.device_get(outputs))


def detect_language(model: Whisper, states: Float[Array, "frame d_model"]) -> dict[str, float]:
    """Which language is spoken in one encoded clip.

    Args:
        model: a multilingual model with a tokenizer.
        states: encoder states, from `encode`.

    Returns:
        Probability of every language code after the start of the transcript, the most probable
        first.

    Raises:
        InputError: the model has no tokenizer or is English-only.
    """
    return detect_language_batch(model, states[None])[0]


def detect_language_batch(
    model: Whisper, states: Float[Array, "batch frame d_model"]
) -> list[dict[str, float]]:
    """`detect_language` for several clips together."""
    tokenizer = require_tokenizer(model)
    if not tokenizer.multilingual:
        raise InputError("An English-only model cannot detect languages: use a multilingual one.")
    codes, ids = list(tokenizer.languages), jnp.asarray(list(tokenizer.languages.values()))
    start = jnp.asarray([tokenizer.start_of_transcript], jnp.int32)
    probabilities = np.asarray(_token_probabilities(model.decoder, states, start, ids))
    return [
        {codes[i]: float(row[i]) for i in np.argsort(-row, kind="stable")} for row in probabilities
    ]


def require_tokenizer(model: Whisper) -> Tokenizer:
    """The model's tokenizer; raise `InputError` if it came without one."""
    if model.tokenizer is None:
        raise InputError(
            f"The model {model.source} came without a tokenizer.json: put it beside the weights."
        )
    return model.tokenizer


@pytree_dataclass
class _State:
    """The loop's state: what has been written, and what the next token is chosen from."""

    step: Int[Array, ""]
    tokens: Int[Array, "batch step"]
    log_probs: Float[Array, "batch step"]
    finished: Bool[Array, " batch"]
    logits: Float[Array, "batch d_vocab"]
    cache: KeysValues


@functools.partial(jax.jit, static_argnames="max_new")
def _generate(
    decoder: Decoder,
    states: Float[Array, "batch frame d_model"],
    prompts: Int[Array, "batch pos"],
    prompt_length: Int[Array, ""],
    start: Int[Array, ""],
    rules: Rules,
    edit: Edit,
    max_new: int,
) -> tuple[Array, Array, Array, Array, Array]:
    batch, padded = prompts.shape
    max_tokens = len(decoder.pos_embed[...])
    # The batch comes after the layers, which are scanned over: otherwise each step would transpose.
    cross = jax.vmap(decoder.cross_keys_values, out_axes=1)(states)
    n_layers, _, n_heads, _, d_head = cross.k.shape
    empty = jnp.zeros((n_layers, batch, n_heads, padded + max_new, d_head), states.dtype)

    def run(tokens: Array, cache: KeysValues, offset: Array | int) -> tuple[Array, KeysValues]:
        def one(tokens, cross, cache):
            resid, acts = decoder(tokens, cross, edit, cache=cache, offset=offset)
            assert acts.k is not None
            assert acts.v is not None
            return resid, KeysValues(acts.k.swapaxes(1, 2), acts.v.swapaxes(1, 2))

        resid, new = jax.vmap(one, in_axes=(0, 1, 1), out_axes=(0, 1))(tokens, cross, cache)
        return resid, write_rows(cache, new, offset)

    def unembed(resid: Float[Array, "batch d_model"]) -> Float[Array, "batch d_vocab"]:
        return jax.vmap(lambda row: decoder.unembed(row[None], edit)[0][0])(resid)

    def unfinished(state: _State) -> Array:
        room = prompt_length + state.step <= max_tokens
        return (state.step < max_new) & room & ~state.finished.all()

    def write_token(state: _State) -> _State:
        allowed = jax.vmap(rules, in_axes=(0, 0, None))(state.logits, state.tokens, state.step)
        token = jnp.where(
            state.finished, rules.end_of_text, jnp.argmax(allowed, axis=-1).astype(jnp.int32)
        )
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(allowed), token[:, None], axis=1)[:, 0]
        resid, cache = run(token[:, None], state.cache, prompt_length + state.step)
        return _State(
            step=state.step + 1,
            tokens=state.tokens.at[:, state.step].set(token),
            log_probs=state.log_probs.at[:, state.step].set(
                jnp.where(state.finished, jnp.zeros_like(log_prob), log_prob)
            ),
            finished=state.finished | (token == rules.end_of_text),
            logits=unembed(resid[:, 0]),
            cache=cache,
        )

    # The padding behind the prompt is overwritten before any later position may look at it.
    resid, cache = run(prompts, KeysValues(empty, empty), 0)
    logits = unembed(jnp.take(resid, prompt_length - 1, axis=1))
    no_speech = jax.nn.softmax(unembed(jnp.take(resid, start, axis=1)))[:, rules.no_speech]
    state = _State(
        step=jnp.zeros((), jnp.int32),
        tokens=jnp.full((batch, max_new), rules.end_of_text, jnp.int32),
        log_probs=jnp.zeros((batch, max_new), logits.dtype),
        finished=jnp.zeros(batch, bool),
        logits=logits,
        cache=cache,
    )
    state = jax.lax.while_loop(unfinished, write_token, state)
    return state.tokens, state.log_probs, state.finished, state.step, no_speech


@jax.jit
def _token_probabilities(
    decoder: Decoder,
    states: Float[Array, "batch frame d_model"],
    tokens: Int[Array, " pos"],
    ids: Int[Array, " choice"],
) -> Float[Array, "batch choice"]:
    def one(states):
        resid, _ = decoder(tokens, decoder.cross_keys_values(states))
        return jax.nn.softmax(decoder.unembed(resid[-1:])[0][0, ids])

    return jax.vmap(one)(states)


def _stack_prompts(
    config: WhisperConfig, prompts: Sequence[Sequence[int]], batch: int
) -> Int[np.ndarray, "batch pos"]:
    if len(prompts) != batch or len({len(prompt) for prompt in prompts}) != 1:
        raise InputError(
            f"There are {len(prompts)} prompts for {batch} clips: give each one, of equal length."
        )
    return np.stack([np.asarray(check_tokens(config, prompt)) for prompt in prompts])


def _padded_length(length: int, max_tokens: int) -> int:
    """A few sizes rather than one for every prompt: each is a compilation."""
    return min(max_tokens, max(_SMALLEST_PROMPT, 1 << (length - 1).bit_length()))


def _unpack(
    tokenizer: Tokenizer,
    prompts: Int[np.ndarray, "batch pos"],
    outputs: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> list[Generated]:
    tokens, log_probs, finished, steps, no_speech = outputs
    results = []
    for row in range(len(prompts)):
        ends = np.flatnonzero(tokens[row] == tokenizer.end_of_text)
        length = int(ends[0]) if finished[row] else int(steps)
        written = tuple(int(token) for token in tokens[row, :length])
        results.append(
            Generated(
                prompt=tuple(int(token) for token in prompts[row]),
                tokens=written,
                log_probs=tuple(float(p) for p in log_probs[row, : length + int(finished[row])]),
                finished=bool(finished[row]),
                no_speech_prob=float(no_speech[row]),
                text=tokenizer.decode(written),
            )
        )
    return results
