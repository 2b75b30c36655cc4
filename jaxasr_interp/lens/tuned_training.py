"""Training a tuned lens: `min Σ_l mean_rows KL(p_final ‖ p_l)` over every layer's affine map.

Belrose et al. 2023 (arXiv 2303.08112). No layer's logits are held: the divergence and its gradient
come from log-sum-exps over chunks of the vocabulary (see `tuned_data`). The rows of a step depend
only on the seed and the step's number, so that an interrupted training gives the same result when
it is resumed.
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

from jaxasr_interp.errors import InputError, check_least
from jaxasr_interp.kernels.lens import log_sum_exp
from jaxasr_interp.lens.tuned import Translators
from jaxasr_interp.lens.tuned_checkpoints import Checkpoints
from jaxasr_interp.lens.tuned_data import LensRows, lens_rows
from jaxasr_interp.model.decoder import Decoder
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.runtime.frames import to_dataframe
from jaxasr_interp.runtime.identity import identify
from jaxasr_interp.runtime.progress import Progress
from jaxasr_interp.runtime.transforms import host_only
from jaxasr_interp.speech.clips import ClipSource, as_clips
from jaxasr_interp.speech.utterance import Clip

if TYPE_CHECKING:
    import pandas
    import xarray


@dataclasses.dataclass(frozen=True)
class LensTraining:
    """The settings of the training: AdamW with a learning rate that falls along a cosine to 0.

    Weight decay pulls the maps towards 0, which is the logit lens.

    Attributes:
        steps: number of steps of the optimiser.
        batch_size: number of rows in each step.
        learning_rate: learning rate at the first step.
        weight_decay: weight decay of AdamW.
        held_out: share of the clips that are held out to measure the lens.
        seed: seed of the choice of these clips and of the order of the rows.
        save_every: number of steps between checkpoints.
    """

    steps: int = 500
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    held_out: float = 0.2
    seed: int = 0
    save_every: int = 50

    def __post_init__(self):
        check_least(1, steps=self.steps, batch_size=self.batch_size, save_every=self.save_every)
        check_least(0, seed=self.seed)
        for name in ("learning_rate", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} is {getattr(self, name)}: expected at least 0.")
        if not 0 < self.held_out < 1:
            raise InputError(f"held_out is {self.held_out}: expected a share between 0 and 1.")


@dataclasses.dataclass(frozen=True)
class TunedLens:
    """A trained lens, and its divergence on held-out clips.

    Attributes:
        translators: the maps.
        loss: mean `KL(final ‖ layer)` of each step, in nats.
        logit_kl: mean `KL(final ‖ layer)` of the logit lens over the held-out clips' positions.
        tuned_kl: the same mean for the tuned lens.
        rows: number of positions that were trained on, and that were held out.
    """

    translators: Translators
    loss: Float[np.ndarray, "step layer"]
    logit_kl: Float[np.ndarray, " layer"]
    tuned_kl: Float[np.ndarray, " layer"]
    rows: tuple[int, int]

    def to_dataset(self) -> "xarray.Dataset":
        """Return the divergences with named axes."""
        import xarray

        data = {
            "loss": (("step", "layer"), self.loss),
            "kl": (("lens", "layer"), np.stack([self.logit_kl, self.tuned_kl])),
        }
        coordinates = {"lens": ["logit", "tuned"], "layer": np.arange(len(self.tuned_kl))}
        trained, held_out = self.rows
        return xarray.Dataset(data, coordinates, {"rows": trained, "held_out_rows": held_out})

    def to_dataframe(self) -> "pandas.DataFrame":
        """Return a table with a row for each layer of both lenses."""
        return to_dataframe(self.to_dataset(), ("lens", "layer"))


@host_only("train before, and use tuned_lens under them")
def train_tuned_lens(
    model: Whisper,
    clips: ClipSource,
    out: str | Path | None = None,
    training: LensTraining | None = None,
    *,
    on_progress: Progress | None = None,
) -> TunedLens:
    """Train a tuned lens, or resume a training that was interrupted.

    The same arguments give the same translators, bit for bit on the same device, no matter how
    often the training was interrupted.

    A map has `d_model²` numbers, and minutes of speech give only a thousand rows. A lens that
    overfits its clips has a `loss` far below its `tuned_kl`, and is too good on these clips. Take
    an hour of speech if you can.

    Args:
        model: a model with a tokenizer and at least two decoder layers.
        clips: at least two clips of up to 30 s, or what names them (see `speech.clips.as_clips`);
            one without a text gets the model's transcript.
        out: folder of the checkpoints; by default none are kept.
        training: settings of the training.
        on_progress: called with the number done, the total, and `"clips"`, then `"steps"`.

    Returns:
        The lens, measured on the held-out clips.

    Raises:
        InputError: there are too few clips, the model has a single decoder layer, or `out` holds
            another training.
    """
    training = LensTraining() if training is None else training
    if model.config.decoder_layers < 2:
        raise InputError("A tuned lens takes two decoder layers or more: this model has one.")
    clips = as_clips(clips)
    seen, unseen = _split(clips, training)
    checkpoints = None
    if out is not None:
        checkpoints = Checkpoints(Path(out), _about(model, clips, training))
        checkpoints.step()  # This refuses the folder of another training early.
    say = on_progress or (lambda done, of, what: None)
    rows = lens_rows(model, seen, on_progress=lambda done, _, what: say(done, len(clips), what))
    held_out = lens_rows(
        model, unseen, on_progress=lambda done, _, what: say(len(seen) + done, len(clips), what)
    )
    translators, loss = fit_translators(model, rows, training, checkpoints, on_progress=on_progress)
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
        training: settings of the training.
        checkpoints: checkpoints to write and to resume from, if any.
        on_progress: called after each step.

    Returns:
        The translators, and the mean divergence before each step.
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
    """Compute `KL(p_final ‖ p_l) = log Σ_v exp(h · E_v) - h · e_f - H_f` of translated layers.

    Args:
        decoder: decoder, which has the final LayerNorm and the unembedding.
        translators: the maps.
        rows: from `lens_rows`.

    Returns:
        Divergences in nats, in float32 or wider.
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
    """Average `divergence` over any number of rows, in nats."""
    total = np.zeros(len(translators.bias))
    for start in range(0, len(rows), batch_size):
        # The last batch is filled with the first rows, so that one program serves all batches.
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
    """Make one step of the optimiser for all layers, whose losses are independent."""

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
    """Return the rows of a step; each pass over the rows has its own order and whole batches."""
    size = min(training.batch_size, n)
    epoch, batch = divmod(step, n // size)
    order = np.random.default_rng((training.seed, epoch)).permutation(n)
    return order[batch * size : (batch + 1) * size]


def _split(clips: Sequence[Clip], training: LensTraining) -> tuple[list[Clip], list[Clip]]:
    """Split clips into those to train on and those held out, at least one of each."""
    if len(clips) < 2:
        raise InputError(f"There are {len(clips)} clips: a tuned lens takes two or more.")
    order = np.random.default_rng(training.seed).permutation(len(clips))
    n = min(max(round(training.held_out * len(clips)), 1), len(clips) - 1)
    return [clips[i] for i in sorted(order[n:])], [clips[i] for i in sorted(order[:n])]


def _about(model: Whisper, clips: Sequence[Clip], training: LensTraining) -> dict[str, Any]:
    """Describe everything that the translators depend on, and their shape."""
    like = Translators.zero(model)
    settings = dataclasses.asdict(training)
    del settings["save_every"]
    contents = [(clip.text, clip.language, clip.audio) for clip in clips]
    return {
        "identity": identify(model=model, clips=contents, training=settings),
        "model": model.source,
        "dtype": str(like.weight.dtype),
        "layers": len(like.bias),
        "d_model": model.config.d_model,
        "steps": training.steps,
    }
