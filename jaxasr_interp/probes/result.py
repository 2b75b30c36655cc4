"""Fitted probes: their weights, and their outputs for held-out examples."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxasr_interp.display import Displayed
from jaxasr_interp.errors import InputError
from jaxasr_interp.interventions.kinds import Add
from jaxasr_interp.interventions.where import END, At
from jaxasr_interp.model.sites import Stack, check_site, check_stack, head_axis
from jaxasr_interp.probes.grid import Features, Split
from jaxasr_interp.probes.linear import LinearProbe
from jaxasr_interp.probes.options import FitOptions
from jaxasr_interp.probes.solve import Probe, Solution
from jaxasr_interp.probes.targets import Target
from jaxasr_interp.pytree import pytree_dataclass, summary


@pytree_dataclass
class HeldOut:
    """The outputs of cross-validated probes for examples that they were not trained on.

    Attributes:
        outputs: for every example those of the probe that tests it, with the penalty that
            validates best; NaN where the label is not known.
        l2_index: index of that penalty in `FitOptions.l2`.
        train_loss: of every probe, without the penalty.
        validation_loss: of every probe.
    """

    outputs: Float[np.ndarray, "*layer seed output example"]
    l2_index: Int[np.ndarray, "*layer seed fold"]
    train_loss: Float[np.ndarray, "*layer l2 seed fold"]
    validation_loss: Float[np.ndarray, "*layer l2 seed fold"]


@dataclasses.dataclass(frozen=True)
class Probes(Displayed):
    """The probes of one target.

    Attributes:
        target: the labels that they learn.
        options: how they were fitted.
        folds: the fold that tests each example, -1 where its label is not known.
        groups: the number of each example's group; `None` where each example is its own group.
        held_out: results of the cross-validation.
        shuffled: results of the cross-validation with shuffled labels, if `FitOptions.shuffled`.
        shuffled_labels: the shuffled labels.
        probe: the probes trained on all examples, for activations as they are; they have a leading
            `layer` axis.
        l2_index: index of the penalty of each layer's `probe` in `FitOptions.l2`.
        features: the site that the probes read, as `encoder.resid_post`; `None` where the
            activations are not known to be those of a site.
    """

    target: Target
    options: FitOptions
    folds: Int[np.ndarray, "seed example"]
    groups: Int[np.ndarray, " example"] | None
    held_out: HeldOut
    shuffled: HeldOut | None
    shuffled_labels: Float[np.ndarray, "seed example"] | None
    probe: Probe
    l2_index: Int[np.ndarray, " layer"]
    features: str | None = None

    __repr__ = summary

    def outputs(
        self, x: Float[np.ndarray, "layer example feature"]
    ) -> Float[np.ndarray, "layer output example"]:
        """Compute the outputs for activations, of the probes that were trained on all examples.

        Raises:
            InputError: the activations have other layers or features.
        """
        expected = jax.tree.leaves(self.probe)[0].shape
        if (len(x), x.shape[-1]) != (expected[0], expected[-1]):
            raise InputError(
                f"The activations are {x.shape}: these probes read {expected[0]} layers of "
                f"{expected[-1]} features."
            )
        return np.asarray(jax.vmap(lambda probe, x: probe.outputs(x))(self.probe, jnp.asarray(x)))

    def direction(self, layer: int, towards: str | None = None) -> Float[np.ndarray, " feature"]:
        """Return the unit vector along which a class's output grows fastest.

        Args:
            layer: index of the layer.
            towards: the class; by default the second of two classes, or the larger values of a
                regression.

        Raises:
            InputError: no such layer or class, or the probe is not linear.
        """
        if not isinstance(self.probe, LinearProbe):
            raise InputError("A probe with a hidden layer has no direction: fit a linear one.")
        if not 0 <= layer < len(self.l2_index):
            raise InputError(f"Layer {layer} is outside the {len(self.l2_index)} layers.")
        classes = self.target.classes
        if towards is not None and towards not in classes:
            raise InputError(f"{self.target.name!r} has no class {towards!r}: {list(classes)}.")
        if self.target.kind == "classes":
            if towards is None:
                raise InputError(f"Name the class to go towards, one of {list(classes)}.")
            kernel = np.asarray(self.probe.kernel[layer])
            vector = kernel[classes.index(towards)] - kernel.mean(0)
        else:
            vector = np.asarray(self.probe.kernel[layer, 0])
            vector = -vector if towards is not None and towards == classes[0] else vector
        return vector / np.linalg.norm(vector)

    def steer(
        self,
        layer: int,
        amount: float,
        *,
        towards: str | None = None,
        start: int = 0,
        stop: int = END,
    ) -> At:
        """Make an edit that adds `amount` times the direction to the activations.

        The edit acts on the site and stack that the probes read (`features`): elsewhere it is
        refused.

        Args:
            layer: index of the layer, of the probes and of the model alike.
            amount: length of what is added, in units of the activations.
            towards: see `direction`.
            start: first position.
            stop: the position after the last.

        Raises:
            InputError: the site that the probes read is not known, or it has heads; and see
                `direction`.
        """
        if self.features is None:
            raise InputError(
                "It is not known which activations these probes read: fit them with "
                "features='encoder.resid_post', or whatever site they are of."
            )
        stack, site = parse_features(self.features)
        if head_axis(site) is not None:
            raise InputError(
                f"These probes read all heads of {self.features!r} at once: steer by a site that "
                "has none."
            )
        vector = jnp.asarray(amount * self.direction(layer, towards), jnp.float32)
        return At(Add(vector), layer=layer, site=site, start=start, stop=stop, stack=stack)


def parse_features(features: str) -> tuple[Stack, str]:
    """Split a name as `encoder.resid_post` into its stack and its site.

    Raises:
        InputError: there is no such stack or site.
    """
    stack, _, site = features.partition(".")
    known = check_stack(stack)
    return known, check_site(known, site)


@pytree_dataclass
class LayerProbes:
    """The probes of one layer for one target; see `Probes`."""

    held_out: HeldOut
    shuffled: HeldOut | None
    probe: Probe
    l2_index: Int[np.ndarray, ""]


def read_layer(
    solution: Solution, features: Features, splits: Sequence[Split], target: Target
) -> LayerProbes:
    """Choose the penalties, gather the outputs of the tests, undo the standardisation.

    Args:
        solution: fitted probes, of every penalty and split.
        features: the activations that they were fitted to.
        splits: splits of all targets.
        target: one of these targets.
    """
    own = [i for i, split in enumerate(splits) if split.labelling.target is target]
    tested = [i for i in own if splits[i].fold is not None]
    held_out = _held_out(solution, splits, [i for i in tested if not splits[i].labelling.shuffled])
    shuffled = [i for i in tested if splits[i].labelling.shuffled]
    (whole,) = (i for i in own if splits[i].fold is None)
    l2_index = _lowest(held_out.validation_loss.mean((1, 2)))
    probe = jax.tree.map(lambda leaf: leaf[l2_index, whole], solution.probe)
    return LayerProbes(
        held_out,
        _held_out(solution, splits, shuffled) if shuffled else None,
        jax.device_get(probe.unscaled(features.centre, features.spread)),
        np.asarray(l2_index),
    )


def _lowest(loss: Float[np.ndarray, "l2 *rest"]) -> Int[np.ndarray, "*rest"]:
    """Return the index of the penalty with the lowest loss; a diverged search is left out."""
    if np.isnan(loss).all(0).any():
        raise InputError("The search diverges with every penalty: ask for a lower learning_rate.")
    return np.asarray(np.nanargmin(loss, axis=0))


def _held_out(solution: Solution, splits: Sequence[Split], tested: Sequence[int]) -> HeldOut:
    """Gather the results of splits that are ordered by seed and fold."""
    labellings = list({id(splits[i].labelling): splits[i].labelling for i in tested}.values())
    by_seed = np.reshape(tested, (len(labellings), -1))
    train_loss, validation_loss = (
        np.asarray(each)[:, by_seed] for each in (solution.train_loss, solution.validation_loss)
    )
    l2_index = _lowest(validation_loss)
    n_outputs = solution.outputs.shape[2]
    outputs = np.full(
        (len(labellings), n_outputs, len(labellings[0].folds)), np.nan, solution.outputs.dtype
    )
    for seed, labelling in enumerate(labellings):
        known = labelling.folds[labelling.folds >= 0]
        for fold, split in enumerate(by_seed[seed]):
            said = solution.outputs[l2_index[seed, fold], split]
            outputs[seed][:, labelling.folds == fold] = said[:, : len(known)][:, known == fold]
    return HeldOut(outputs, l2_index, train_loss, validation_loss)


def collect(
    target: Target,
    options: FitOptions,
    splits: Sequence[Split],
    layers: Sequence[LayerProbes],
    groups: Int[np.ndarray, " example"] | None,
    features: str | None,
) -> Probes:
    """Stack the probes of all layers."""
    every = jax.tree.map(lambda *leaves: np.stack(leaves), *layers)
    real = {s.labelling.seed: s.labelling for s in splits if not s.labelling.shuffled}
    shuffled = {s.labelling.seed: s.labelling for s in splits if s.labelling.shuffled}
    return Probes(
        target,
        options,
        np.stack([one.folds for one in real.values()]),
        groups,
        every.held_out,
        every.shuffled,
        np.stack([one.labels for one in shuffled.values()]) if shuffled else None,
        every.probe,
        every.l2_index,
        features,
    )
