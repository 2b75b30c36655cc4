"""The logit lens: next-token distributions of the residual stream and of what is added to it.

nostalgebraist 2020, "interpreting GPT: the logit lens"; saturation as in Glazer et al. 2025.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxasr_interp.display import Displayed
from jaxasr_interp.errors import InputError
from jaxasr_interp.kernels.lens import (
    Readout,
    readout,
)
from jaxasr_interp.model.decoder import Decoder
from jaxasr_interp.model.run import DecoderRun
from jaxasr_interp.model.sites import SITES
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.pytree import pytree_dataclass, static
from jaxasr_interp.runtime.frames import to_dataframe
from jaxasr_interp.speech.tokenizer import Tokenizer

if TYPE_CHECKING:
    import pandas
    import xarray

STREAM_SITES = ("resid_pre", "resid_mid", "resid_mid_cross", "resid_post")
"""The sites of the residual stream, which have a saturation layer."""

LENS_SITES = (
    "embed",
    *STREAM_SITES,
    "attn_out",
    "cross_attn_out",
    "mlp_out",
    "result",
    "cross_result",
)
"""The sites with the axis `d_model`, which the unembedding can read."""


@pytree_dataclass
class LogitLens(Displayed):
    """The next-token distribution read from a site, at every layer (and head) and position.

    Attributes:
        targets: the token whose log-probability and rank are read at each position.
        top_tokens: most probable tokens, best first.
        top_log_probs: log-probabilities of the top tokens.
        target_log_prob: log-probability of the target.
        target_rank: number of tokens with a higher logit than the target.
        entropy: entropy of the distribution, in nats.
        kl: `KL(model's output ‖ layer)`, in nats; 0 in the last layer's `resid_post`.
        saturation_layer: at sites of the residual stream, the earliest layer from which on the top
            token is the model's; the number of layers if there is none. `None` at other sites.
        site: the site that is read.
        tokenizer: the model's, which writes tokens; `None` if it has none.
    """

    targets: Int[Array, " pos"]
    top_tokens: Int[Array, "*stack pos top"]
    top_log_probs: Float[Array, "*stack pos top"]
    target_log_prob: Float[Array, "*stack pos"]
    target_rank: Int[Array, "*stack pos"]
    entropy: Float[Array, "*stack pos"]
    kl: Float[Array, "*stack pos"]
    saturation_layer: Int[Array, " pos"] | None
    site: str = static()
    tokenizer: Tokenizer | None = static(default=None)

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes: those of `layer` and `head` that the site has, then `pos`."""
        return stack_axes(self.site)

    def to_dataset(self) -> "xarray.Dataset":
        """Return the arrays with named axes."""
        import xarray

        axes = {
            "targets": ("pos",),
            "top_tokens": (*self.axes, "top"),
            "top_log_probs": (*self.axes, "top"),
            "saturation_layer": ("pos",),
        }
        arrays = {
            name: (axes.get(name, self.axes), np.asarray(value))
            for name, value in vars(self).items()
            if name not in ("site", "tokenizer") and value is not None
        }
        return xarray.Dataset(arrays, attrs={"site": self.site})

    def to_dataframe(self) -> "pandas.DataFrame":
        """Return a table with a row for each layer, head (where the site has any) and position."""
        return to_dataframe(self.to_dataset(), self.axes, spread=("top",))


def stack_axes(site: str) -> tuple[str, ...]:
    """Return the axes of a lens at `site`: `layer` and `head` if the site has them, and `pos`."""
    return (*(axis for axis in SITES["decoder"][site] if axis in ("layer", "head")), "pos")


def logit_lens(
    model: Whisper,
    run: DecoderRun,
    *,
    site: str = "resid_post",
    targets: Int[Array, " pos"] | Sequence[int] | np.ndarray | None = None,
    top_k: int = 5,
    implementation: str | None = None,
) -> LogitLens:
    """Read a site through the final LayerNorm and the unembedding.

    `p[layer, pos] = softmax(ln_final(resid_post[layer, pos]) W_Eᵀ)`. What the sublayers
    (`attn_out`, `cross_attn_out`, `mlp_out`) and heads (`result`, `cross_result`) add to the
    residual stream is read in the same way; the LayerNorm scales each of them alone. For shares of
    the model's own logits see `direct_logit_attribution`.

    Args:
        model: the model of the run.
        run: from `decode`, with the site and `resid_post` among its activations.
        site: one of `LENS_SITES`.
        targets: for each position the next token to follow through the layers; by default the
            model's most probable one.
        top_k: number of the most probable tokens to keep.
        implementation: name of the readout kernel; `None` for the best one available here.

    Returns:
        One value for each layer (and head) and position; the last layer's `resid_post` is the
        model's own output.

    Raises:
        InputError: the site cannot be read, the run lacks it, or the targets do not fit the run.
    """
    check_lens_site(site)
    require_sites(run, dict.fromkeys((site, "resid_post")))
    said = run.logits.argmax(-1).astype(jnp.int32)
    followed = check_next_tokens(model, run, "target", said if targets is None else targets)
    if not 1 <= top_k <= model.config.d_vocab:
        raise InputError(f"top_k is {top_k}: expected 1 to {model.config.d_vocab}.")
    states, resid_post = (getattr(run.acts, name) for name in (site, "resid_post"))
    if "head" in stack_axes(site):
        states = states.swapaxes(1, 2)
    read = read_states(model.decoder, states, resid_post[-1], followed, top_k, implementation)
    saturation = _saturation(read.top_tokens[:, :, 0], said) if site in STREAM_SITES else None
    return LogitLens(
        targets=followed,
        saturation_layer=saturation,
        site=site,
        tokenizer=model.tokenizer,
        **vars(read),
    )


def check_lens_site(site: str) -> None:
    """Raise `InputError` unless a lens can read the site."""
    if site not in LENS_SITES:
        raise InputError(f"No lens can read {site!r}: choose one of {', '.join(LENS_SITES)}.")


def require_sites(run: DecoderRun, sites: Iterable[str]) -> None:
    """Raise `InputError` unless the run has these activations."""
    sites = tuple(sites)
    for site in sites:
        if getattr(run.acts, site) is None:
            asked = ", ".join(repr(name) for name in sites)
            raise InputError(f"The run lacks {site}: decode with sites=({asked}, ...).")


def check_next_tokens(
    model: Whisper, run: DecoderRun, what: str, tokens: Array | Sequence[int] | np.ndarray
) -> Int[Array, " pos"]:
    """Return `tokens` as an array; raise `InputError` unless it has a token for each position.

    Under a transformation the values are unknown and only the shape is checked.
    """
    given = tokens if isinstance(tokens, Tracer) else np.asarray(tokens)
    if given.shape != run.logits.shape[:1]:
        raise InputError(f"There are {given.shape} {what}s for {len(run.logits)} positions.")
    if isinstance(given, np.ndarray):
        if not np.issubdtype(given.dtype, np.integer):
            raise InputError(f"The {what}s are {given.dtype}: expected tokens, which are integers.")
        if ((given < 0) | (given >= model.config.d_vocab)).any():
            vocabulary = f"the vocabulary of {model.config.d_vocab} tokens"
            raise InputError(f"A {what} is outside {vocabulary}.")
    return jnp.asarray(given, jnp.int32)


@functools.partial(jax.jit, static_argnames=("top_k", "implementation"))
def read_states(
    decoder: Decoder,
    states: Float[Array, "*stack pos d_model"],
    last: Float[Array, "pos d_model"],
    targets: Int[Array, " pos"],
    top_k: int,
    implementation: str | None,
) -> Readout:
    """Read states before the LayerNorm; `last` is the model's last `resid_post`."""
    norm, embed = decoder.final_norm, decoder.embed[...]
    hidden = norm(states.reshape(-1, states.shape[-1])).reshape(states.shape)
    return readout(hidden, norm(last), embed, targets, top_k=top_k, implementation=implementation)


@jax.jit
def _saturation(top: Int[Array, "layer pos"], said: Int[Array, " pos"]) -> Int[Array, " pos"]:
    same = (top == said[None]).astype(jnp.int32)
    to_the_end = jnp.flip(jnp.cumprod(jnp.flip(same, 0), axis=0), 0)
    return len(top) - to_the_end.sum(0, dtype=jnp.int32)
