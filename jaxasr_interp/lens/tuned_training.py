"""Training a tuned lens: `min Σ_l mean_rows KL(p_final ‖ p_l)` over every layer's affine map.

Belrose et al. 2023 (arXiv 2303.08112). The logits are held of no layer: the divergence and its
gradient come from log-sum-exps over chunks of the vocabulary (see `tuned_data`). The rows of a step
follow from the seed and its number alone, so training that was cut off goes on as if it had not
been.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.kernels.lens import log_sum_exp  # pyright: ignore[reportMissingImports]
from jaxasr_interp.lens.tuned import Translators
from jaxasr_interp.lens.tuned_checkpoints import Checkpoints
from jaxasr_interp.lens.tuned_data import LensRows, lens_rows
from jaxasr_interp.model.whisper import Decoder, Whisper
from jaxasr_interp.runtime.identity import identify
from jaxasr_interp.runtime.progress import Progress
from jaxasr_interp.speech.utterance import Clip

if TYPE_CHECKING:
    import xarray


@dataclasses.dataclass(frozen=True)
class LensTraining:
    """How a tuned lens is trained: AdamW, its rate falling along a cosine to 0.

    Weight decay pulls the maps towards none at all, which is the logit lens.

    Attributes:
        steps: of the optimiser.
        batch_size: rows a step.
        learning_rate: at the first step.
        weight_decay: of AdamW.
        held_out: share of the clips that are kept to measure the lens on.
        seed: which clips those are, and the order of the rows.
        save_every: steps between checkpoints.
    """

    steps: int = 500
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    held_out: float = 0.2
    seed: int = 0
    save_every: int = 50

    def __post_init__(self):
        for name in ("steps", "batch_size", "save_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: expected at least 1.")
        for name, least in (("learning_rate", 0), ("weight_decay", 0)):
            if not getattr(self, name) >= least:
                raise InputError(f"{name} is {getattr(self, name)}: expected at least {least}.")
        if not 0 < self.held_out < 1:
            raise InputError(f"held_out is {self.held_out}: expected a share between 0 and 1.")


@dataclasses.dataclass(frozen=True)
class TunedLens:
    """A trained lens, and what it is worth on clips that it has not seen.

    Attributes:
        translators: the maps.
        loss: each step's mean `KL(final ‖ layer)`, in nats.
        logit_kl: mean `KL(final ‖ layer)` of the logit lens over the held-out clips' positions.
        tuned_kl: the same of the tuned lens.
        rows: positions that were trained on, and held out.
    """

    translators: Translators
    loss: Float[np.ndarray, "step layer"]
    logit_kl: Float[np.ndarray, " layer"]
    tuned_kl: Float[np.ndarray, " layer"]
    rows: tuple[int, int]

    def to_dataset(self) -> "xarray.Dataset":
        """The divergences with named axes."""
        import xarray

        data = {
            "loss": (("step", "layer"), self.loss),
            "kl": (("lens", "layer"), np.stack([self.logit_kl, self.tuned_kl])),
        }
        coordinates = {"lens": ["logit", "tuned"], "layer": np.arange(len(self.tuned_kl))}
        trained, held_out = self.rows
        return xarray.Dataset(data, coordinates, {"rows": trained, "held_out_rows": held_out})


def train_tuned_lens(
    model: Whisper,
    clips: Sequence[Clip],
    out: str | Path,
    training: LensTraining | None = None,
    *,
    on_progress: Progress | None = None,
) -> TunedLens:
    """Train a tuned lens, or go on with a training that was cut off.

    Called again with the same arguments it ends with the same translators, bit for bit on the same
    device, however often it was cut off.

    A map has `d_model²` numbers, and minutes of speech are a thousand rows: a lens that has learned
    clips by heart has a `loss` far below its `tuned_kl`, and reads those clips too well. An hour is
    better.

    Args:
        model: a model with a tokenizer and at least two decoder layers.
        clips: at least two, of up to 30 s; where the text is not known, what the model writes.
        out: folder of the checkpoints.
        training: how.
        on_progress: called with what is done, of how much, and of what: `"clips"`, then `"steps"`.

    Returns:
        The lens, measured on the clips held out.

    Raises:
        InputError: there are too few clips, the model has a single decoder layer, or `out` holds
            another training.
    """
    training = LensTraining() if training is None else training
    if model.config.decoder_layers < 2:
        raise InputError("A tuned lens takes two decoder layers or more: this model has one.")
    seen, unseen = _split(clips, training)
    checkpoints = Checkpoints(Path(out), _about(model, clips, training))
    checkpoints.step()  # Another training's folder is refused before the work.
    say = on_progress or (lambda done, of, what: None)
    rows = lens_rows(model, seen, on_progress=lambda done, _, what: say(done, len(clips), what))
    held_out = lens_rows(
        model, unseen, on_progress=lambda done, _, what: say(len(seen) + done, len(clips), what)
    )
    translators, loss = fit_translators(
        model,
        rows,
        training,
        checkpoints,
        on_progress=on_progress,
    )
    return TunedLens(
        translators,
        loss,
        mean_divergence(model, Translators.zero(model), held_out, training.batch_size),
        mean_divergence(model, translators, held_out, training.batch_size),
        (len(rows), len(held_out)),
    )


def fit_translators(
    model: Whisper,
    rows: LensRows,
    training: LensTraining,
    checkpoints: Checkpoints | None = None,
    *,
    on_progress: Progress | None = None,
) -> tuple[Translators, Float[np.ndarray, "step layer"]]:
    """Train translators on rows.

    Args:
        model: the model of the rows.
        rows: from `lens_rows`.
        training: how.
        checkpoints: where to keep what is done and to go on from, if anywhere.
        on_progress: called after each step.

    Returns:
        The translators, and each step's mean divergence before it.
    """
    optimizer = _optimizer(training)
    translators = Translators.zero(model)
    loss = jnp.zeros((training.steps, len(translators.bias)), translators.bias.dtype)
    state = {"optimizer": optimizer.init(cast(Any, translators)), "loss": loss}
    first = 0 if checkpoints is None else checkpoints.step()
    if checkpoints is not None and first:
        translators, state = checkpoints.restore(translators, state)
    for step in range(first, training.steps):
        batch = rows.take(_rows_of_step(len(rows), training, step))
        translators, state = _step(training, model.decoder, translators, state, batch, step)
        done = step + 1
        if checkpoints is not None and (done % training.save_every == 0 or done == training.steps):
            checkpoints.save(done, translators, state)
        if on_progress is not None:
            on_progress(done, training.steps, "steps")
    return translators, np.asarray(state["loss"])


def divergence(
    decoder: Decoder, translators: Translators, rows: LensRows
) -> Float[Array, "layer rows"]:
    """`KL(p_final ‖ p_l) = log Σ_v exp(h · E_v) - h · e_f - H_f` of every translated layer.

    Args:
        decoder: whose final LayerNorm and unembedding.
        translators: the maps.
        rows: from `lens_rows`.

    Returns:
        Nats, in float32 or wider.
    """
    resid = translators(jnp.asarray(rows.resid).swapaxes(0, 1))
    hidden = jax.vmap(decoder.final_norm)(resid)
    lse = log_sum_exp(hidden.reshape(-1, hidden.shape[-1]), decoder.embed[...])
    lse = lse.reshape(hidden.shape[:2])
    own = jnp.einsum("lrd,rd->lr", hidden.astype(lse.dtype), rows.mean_embedding)
    return lse - own - jnp.asarray(rows.entropy)[None]


def mean_divergence(
    model: Whisper, translators: Translators, rows: LensRows, batch_size: int
) -> Float[np.ndarray, " layer"]:
    """The mean of `divergence` over any number of rows, in nats."""
    total = np.zeros(len(translators.bias))
    for start in range(0, len(rows), batch_size):
        # One shape, one program: the last batch begins again with the first rows.
        of = np.arange(start, start + batch_size) % len(rows)
        values = _divergence(model.decoder, translators, rows.take(of))
        total += np.asarray(values[:, : len(rows) - start], np.float64).sum(1)
    return total / len(rows)


_divergence = jax.jit(divergence)


@functools.partial(jax.jit, static_argnums=0)
def _step(
    training: LensTraining,
    decoder: Decoder,
    translators: Translators,
    state: dict[str, Any],
    batch: LensRows,
    step: Int[Array, ""] | int,
) -> tuple[Translators, dict[str, Any]]:
    """One step of the optimiser on all layers, whose divergences do not touch each other."""

    def objective(translators: Translators):
        layers = divergence(decoder, translators, batch).mean(1)
        return layers.sum(), layers

    params: Any = translators
    gradient, layers = jax.grad(objective, has_aux=True)(params)
    # Optax raises a float to the power of an integer.
    with jax.numpy_dtype_promotion("standard"):
        updates, optimizer = _optimizer(training).update(gradient, state["optimizer"], params)
    moved: Any = optax.apply_updates(params, updates)
    return moved, {"optimizer": optimizer, "loss": state["loss"].at[step].set(layers)}


def _optimizer(training: LensTraining) -> optax.GradientTransformation:
    rate = optax.cosine_decay_schedule(training.learning_rate, training.steps)
    return optax.adamw(rate, weight_decay=training.weight_decay)


def _rows_of_step(n: int, training: LensTraining, step: int) -> Int[np.ndarray, " _"]:
    """Each pass goes once over the rows, in an order of its own, in whole batches."""
    size = min(training.batch_size, n)
    epoch, batch = divmod(step, n // size)
    order = np.random.default_rng((training.seed, epoch)).permutation(n)
    return order[batch * size : (batch + 1) * size]


def _split(clips: Sequence[Clip], training: LensTraining) -> tuple[list[Clip], list[Clip]]:
    """The clips to train on and those held out, at least one each."""
    if len(clips) < 2:
        raise InputError(f"There are {len(clips)} clips: a tuned lens takes two or more.")
    order = np.random.default_rng(training.seed).permutation(len(clips))
    n = min(max(round(training.held_out * len(clips)), 1), len(clips) - 1)
    return [clips[i] for i in sorted(order[n:])], [clips[i] for i in sorted(order[:n])]


def _about(model: Whisper, clips: Sequence[Clip], training: LensTraining) -> dict[str, Any]:
    """What the translators depend on, and their shape."""
    like = Translators.zero(model)
    settings = dataclasses.asdict(training)
    del settings["save_every"]
    heard = [(clip.text, clip.language, clip.audio) for clip in clips]
    return {
        "identity": identify(model=model, clips=heard, training=settings),
        "model": model.source,
        "dtype": str(like.weight.dtype),
        "layers": len(like.bias),
        "d_model": model.config.d_model,
        "steps": training.steps,
    }
