"""The training data of a tuned lens: residual streams of clips, and the model's predictions.

A row is one position of a run. It holds the residual stream, and what the divergence from the final
layer needs, `KL(p_f ‖ p) = -H_f - h · e_f + log Σ_v exp(h · E_v)`: the final layer's entropy `H_f`
and mean embedding `e_f = softmax(z_f) E`, `d_model + 1` numbers instead of `d_vocab`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.generation.utterances import make_utterance
from jaxasr_interp.kernels.lens import mean_embedding
from jaxasr_interp.model.decoder import Decoder
from jaxasr_interp.model.run import check_tokens, encode_utterance
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.pytree import pytree_dataclass
from jaxasr_interp.runtime.progress import Progress
from jaxasr_interp.speech.utterance import Clip

_LENGTHS = 32


@pytree_dataclass
class LensRows:
    """Positions of runs, on the host; for `base`, an hour of speech takes a few hundred megabytes.

    Attributes:
        resid: `resid_post` of every layer but the last.
        mean_embedding: `e_f`, the final layer's mean embedding.
        entropy: `H_f`, the final layer's entropy in nats.
    """

    resid: Float[np.ndarray | Array, "rows layer d_model"]
    mean_embedding: Float[np.ndarray | Array, "rows d_model"]
    entropy: Float[np.ndarray | Array, " rows"]

    def __len__(self) -> int:
        return len(self.entropy)

    def take(self, rows: Int[np.ndarray, " _"]) -> "LensRows":
        """Return some of the rows, in the given order."""
        return jax.tree.map(lambda x: x[rows], self)


def lens_rows(
    model: Whisper,
    clips: Sequence[Clip],
    *,
    on_progress: Progress | None = None,
) -> LensRows:
    """Run the model over clips and keep the training data of a tuned lens.

    The decoder takes each clip's text, or the model's own transcript if the text is not known. All
    positions are kept, also those of the prompt, because a lens reads all of them.

    Args:
        model: a model with a tokenizer.
        clips: clips of up to 30 s.
        on_progress: called after each clip.

    Returns:
        The rows of all clips, in order.

    Raises:
        InputError: there are no clips, or a text is too long for the decoder.
    """
    if not clips:
        raise InputError("There are no clips for the tuned lens to learn from: give some.")
    rows = []
    for done, clip in enumerate(clips, 1):
        utterance = make_utterance(
            model, clip.audio, text=clip.text, language=clip.language, name=clip.name
        )
        tokens = check_tokens(model.config, utterance.tokens)
        # Padding gives few lengths and programs; no position attends to later ones.
        longest = min(-(-len(tokens) // _LENGTHS) * _LENGTHS, model.config.max_tokens)
        padded = jnp.pad(tokens, (0, longest - len(tokens)))
        run: LensRows = jax.device_get(
            _run(model.decoder, encode_utterance(model, utterance).states, padded)
        )
        rows.append(run.take(np.arange(len(tokens))))
        if on_progress is not None:
            on_progress(done, len(clips), "clips")
    return jax.tree.map(lambda *parts: np.concatenate(parts), *rows)


@jax.jit
def _run(
    decoder: Decoder, states: Float[Array, "frame d_model"], tokens: Int[Array, " pos"]
) -> LensRows:
    run = decoder.run(tokens, states)
    final = decoder.final_norm(run.resid)
    lse, mean = mean_embedding(final, decoder.embed[...])
    entropy = lse - (final.astype(mean.dtype) * mean).sum(-1)
    return LensRows(run.decoder.resid_post[:-1].swapaxes(0, 1), mean, entropy)
