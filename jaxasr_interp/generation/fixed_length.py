"""Generation in a loop of fixed length, for `jax.jit`, `jax.vmap` and `jax.grad`.

`generate` looks on the host which rows have finished. Here every row takes all steps, and what
stands behind the end of the text is padding.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.generation.batch import GenerationJob, stack_edits
from jaxasr_interp.generation.batching import check_edits, cross_keys_values
from jaxasr_interp.generation.logit_filters import make_logit_filter
from jaxasr_interp.generation.options import GREEDY, Choice
from jaxasr_interp.generation.prompts import (
    default_prompt,
    limit_new_tokens,
    make_prompt,
    stack_prompts,
)
from jaxasr_interp.generation.rollout import Sampling, advance_rows, begin, make_sampling
from jaxasr_interp.model.edits import EditLike, edit_of, identity
from jaxasr_interp.model.whisper import Whisper, require_tokenizer
from jaxasr_interp.pytree import pytree_dataclass


@pytree_dataclass
class GeneratedTokens:
    """One generated token sequence in arrays of fixed length; under `vmap` one for each row.

    Attributes:
        tokens: the tokens that were generated; end-of-text at every further step.
        log_probs: natural log-probability of each generated token, and of the first end-of-text if
            it came, among the tokens that were allowed; 0 at every further step. They are NaN where
            the edit, or the model, makes the logits infinite.
        length: number of tokens without end-of-text.
        finished: whether end-of-text came before the limit.
        no_speech_prob: probability of the no-speech token at the start of the transcript.
    """

    tokens: Int[Array, "*batch step"]
    log_probs: Float[Array, "*batch step"]
    length: Int[Array, "*batch"]
    finished: Bool[Array, "*batch"]
    no_speech_prob: Float[Array, "*batch"]


def generate_fixed(
    model: Whisper,
    states: Float[Array, "frame d_model"],
    *,
    prompt: Sequence[int] | None = None,
    edit: EditLike = identity,
    reference: Float[Array, "frame d_model"] | None = None,
    choice: Choice = GREEDY,
) -> GeneratedTokens:
    """Generate the tokens of one encoded clip, as `generate` does, under any transformation.

    Model, states, reference and the arrays of an edit may be traced: `jax.vmap` maps over clips or
    over a batch of edits, and `jax.grad` differentiates the log-probabilities of the chosen tokens.
    The loop always takes `choice.max_new_tokens` steps; it is worth keeping them few.

    Args:
        model: a model with a tokenizer.
        states: encoder states, from `encode`.
        prompt: tokens to start from, known while tracing; see `generate`.
        edit: see `generate`.
        reference: encoder states of another clip; see `generate`.
        choice: how tokens are chosen, without a beam, and the length of the arrays.

    Returns:
        Arrays `[max_new_tokens]` whose first tokens are those of `generate`.

    Raises:
        InputError: see `generate`; also if the prompt is traced, or the choice has a beam
            or a fallback.
    """
    tokenizer, config = require_tokenizer(model), model.config
    choice.refuse_fallback()
    if choice.beam_size > 1:
        raise InputError(
            f"beam_size is {choice.beam_size}: a loop of fixed length has no beam, so give 1."
        )
    given = stack_prompts(config, tokenizer, [default_prompt(model) if prompt is None else prompt])
    edit = edit_of(edit, "decoder", config, given.shape[1])
    clips = states[None]
    references = None if reference is None else reference[None]
    check_edits(model, clips, [[edit]], references)
    if not edit.needs_reference:
        references = None
    job = GenerationJob(
        model.decoder,
        cross_keys_values(model.decoder, clips, references),
        make_prompt(config, tokenizer, given),
        stack_edits([[edit]]),
        make_logit_filter(config, model.generation, tokenizer, given[0], choice.suppress),
    )
    length = choice.max_new_tokens
    n_steps = limit_new_tokens(length, given.shape[1], config.max_tokens)
    return _run(job, make_sampling(choice, np.zeros(1, int)), length=length, n_steps=n_steps)


@functools.partial(jax.jit, static_argnames=("length", "n_steps"))
def _run(job: GenerationJob, sampling: Sampling, *, length: int, n_steps: int) -> GeneratedTokens:
    """Take `n_steps` steps in the only row of the only clip."""
    capacity = job.prompt.tokens.shape[1] + n_steps
    rows = begin(job, sampling, max_new_tokens=length, capacity=capacity)
    advance = advance_rows(job, sampling)
    first = jnp.ones((), jnp.int32)
    _, rows = jax.lax.fori_loop(1, n_steps, lambda _, state: advance(state), (first, rows))
    row = jax.tree.map(lambda x: x[0, 0], rows)
    text = row.tokens != job.logit_filter.end_of_text
    return GeneratedTokens(
        tokens=row.tokens,
        log_probs=row.log_probs,
        length=text.sum(dtype=jnp.int32),
        finished=row.finished,
        no_speech_prob=row.no_speech,
    )
