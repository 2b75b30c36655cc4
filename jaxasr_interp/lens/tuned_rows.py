"""What a tuned lens learns from: residual streams of clips, and what the model says after them.

A row is one position of a run. Beside its residual stream it keeps what the divergence from the
final layer needs of that layer, `KL(p_f ‖ p) = -H_f - h · e_f + log Σ_v exp(h · E_v)`: the entropy
`H_f` and the mean embedding `e_f = softmax(z_f) E`, `d_model + 1` numbers in place of `d_vocab`.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxasr_interp.ablation.result import Clip
from jaxasr_interp.errors import InputError
from jaxasr_interp.generation.transcribe import transcribe_batch
from jaxasr_interp.kernels.lens import mean_embedding  # pyright: ignore[reportMissingImports]
from jaxasr_interp.model.run import check_tokens
from jaxasr_interp.model.whisper import Whisper, require_tokenizer
from jaxasr_interp.pytree import pytree_dataclass
from jaxasr_interp.speech.audio import log_mel_spectrogram

_LENGTHS = 32


@pytree_dataclass
class LensRows:
    """Positions of runs, on the host: an hour of speech is a few hundred megabytes of `base`.

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
        """Some of the rows, in that order."""
        return jax.tree.map(lambda x: x[rows], self)


def lens_rows(
    model: Whisper,
    clips: Sequence[Clip],
    *,
    on_progress: Callable[[int], None] | None = None,
) -> LensRows:
    """Run the model over clips and keep what a tuned lens learns from.

    The decoder is given each clip's text, or where that is not known what the model itself writes.
    Every position counts, those of the prompt too: a lens is read at all of them.

    Args:
        model: a model with a tokenizer.
        clips: of up to 30 s.
        on_progress: called with the clips done.

    Returns:
        The rows of all clips, in order.

    Raises:
        InputError: there are no clips, or a text is too long for the decoder.
    """
    if not clips:
        raise InputError("There are no clips for the tuned lens to learn from: give some.")
    rows = []
    for done, clip in enumerate(clips, 1):
        tokens = check_tokens(model.config, _tokens(model, clip))
        # Few lengths, few programs: no position sees what comes after it.
        longest = min(-(-len(tokens) // _LENGTHS) * _LENGTHS, model.config.max_tokens)
        padded = jnp.pad(tokens, (0, longest - len(tokens)))
        mel = log_mel_spectrogram(clip.audio, model.config.n_mels)
        run: LensRows = jax.device_get(_run(model, mel, padded))
        rows.append(run.take(np.arange(len(tokens))))
        if on_progress is not None:
            on_progress(done)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *rows)


def _tokens(model: Whisper, clip: Clip) -> list[int]:
    tokenizer = require_tokenizer(model)
    if clip.text is None or clip.language is None:
        heard = transcribe_batch(model, [clip.audio], language=clip.language)[0]
        prompt = tokenizer.prompt(heard.language)
        if clip.text is None:
            # What never ends is one token longer than what the decoder takes.
            return [*prompt, *heard.tokens][: model.config.max_tokens]
    else:
        prompt = tokenizer.prompt(clip.language)
    text = clip.text.strip()
    return [*prompt, *(tokenizer.encode(f" {text}") if text else [])]


@jax.jit
def _run(
    model: Whisper, mel: Float[Array, "n_mels mel_frame"], tokens: Int[Array, " pos"]
) -> LensRows:
    states, _ = model.encoder(mel)
    resid, acts = model.decoder(tokens, model.decoder.cross_keys_values(states))
    assert acts.resid_post is not None
    final = model.decoder.final_norm(resid)
    lse, mean = mean_embedding(final, model.decoder.embed[...])
    entropy = lse - (final.astype(mean.dtype) * mean).sum(-1)
    return LensRows(acts.resid_post[:-1].swapaxes(0, 1), mean, entropy)
