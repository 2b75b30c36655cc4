"""Fitted probes: what they say about held-out examples, and their weights."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.interventions.kinds import Add
from jaxasr_interp.interventions.where import END, At
from jaxasr_interp.model.sites import Stack, check_site, check_stack, head_axis
from jaxasr_interp.probes.fitting import Probe, Solution
from jaxasr_interp.probes.grid import Split
from jaxasr_interp.probes.layer import Features, Recipe
from jaxasr_interp.probes.linear import Linear
from jaxasr_interp.probes.targets import Target
from jaxasr_interp.pytree import pytree_dataclass


@pytree_dataclass
class HeldOut:
    """What cross-validated probes say about the examples that each of them was not shown.

    Attributes:
        outputs: for every example of the probe that tests it, with the strength that validates
            best; NaN where the label is not known.
        strength: index of that strength.
        train_loss: of every probe, without the penalty.
        validation_loss: of every probe.
    """

    outputs: Float[np.ndarray, "*layer seed output example"]
    strength: Int[np.ndarray, "*layer seed fold"]
    train_loss: Float[np.ndarray, "*layer strength seed fold"]
    validation_loss: Float[np.ndarray, "*layer strength seed fold"]


@dataclasses.dataclass(frozen=True)
class Probes:
    """The probes of one target.

    Attributes:
        target: what is asked.
        recipe: how they were fitted.
        seeds: of the folds.
        folds: that tests each example, -1 where its label is not known.
        groups: numbers of the examples' groups; `None` where each is its own.
        held_out: what cross-validation says.
        shuffled: the same of probes for shuffled labels, if they were asked for.
        shuffled_labels: those labels.
        probe: trained on all examples, for activations as they are; a leading `layer` axis.
        strength: index of its strength.
        features: the activations that the probes read, as `encoder.resid_post`, if they are known
            to be those of a site of the model.
    """

    target: Target
    recipe: Recipe
    seeds: tuple[int, ...]
    folds: Int[np.ndarray, "seed example"]
    groups: Int[np.ndarray, " example"] | None
    held_out: HeldOut
    shuffled: HeldOut | None
    shuffled_labels: Float[np.ndarray, "seed example"] | None
    probe: Probe
    strength: Int[np.ndarray, " layer"]
    features: str | None = None

    def outputs(
        self, x: Float[np.ndarray, "layer example feature"]
    ) -> Float[np.ndarray, "layer output example"]:
        """What the probes that were trained on all examples say about activations.

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
        """Unit vector along which a class's output grows fastest.

        Args:
            layer: index of the layer.
            towards: the class; of two classes or a regression by default the second, or larger
                values.

        Raises:
            InputError: no such layer or class, or the probe is not linear.
        """
        if not isinstance(self.probe, Linear):
            raise InputError("A probe with a hidden layer has no direction: fit a linear one.")
        if not 0 <= layer < len(self.strength):
            raise InputError(f"Layer {layer} is outside the {len(self.strength)} layers.")
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
        """An edit that adds `amount` times the direction to the activations that were probed.

        It is of the site and stack that the probes read (`features`): elsewhere it is refused.

        Args:
            layer: index of the layer, of the probes and of the model alike.
            amount: length of what is added, in units of the activations.
            towards: see `direction`.
            start: first position.
            stop: the position after the last.

        Raises:
            InputError: it is not known what the probes read, or that has heads; and see
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
    """Stack and site of `encoder.resid_post`.

    Raises:
        InputError: there is no such stack or site.
    """
    stack, _, site = features.partition(".")
    known = check_stack(stack)
    return known, check_site(known, site)


@pytree_dataclass
class LayerProbes:
    """One layer of one target: see `Probes`."""

    held_out: HeldOut
    shuffled: HeldOut | None
    probe: Probe
    strength: Int[np.ndarray, ""]


def read_layer(
    solution: Solution, features: Features, splits: Sequence[Split], target: Target
) -> LayerProbes:
    """Choose strengths, gather what is said in the tests, undo the standardisation.

    Args:
        solution: of every strength and split.
        features: the activations they are of.
        splits: of all targets.
        target: one of them.
    """
    own = [i for i, split in enumerate(splits) if split.labelling.target is target]
    tested = [i for i in own if splits[i].fold is not None]
    held_out = _held_out(solution, splits, [i for i in tested if not splits[i].labelling.shuffled])
    shuffled = [i for i in tested if splits[i].labelling.shuffled]
    (whole,) = (i for i in own if splits[i].fold is None)
    strength = _lowest(held_out.validation_loss.mean((1, 2)))
    probe = jax.tree.map(lambda leaf: leaf[strength, whole], solution.probe)
    return LayerProbes(
        held_out,
        _held_out(solution, splits, shuffled) if shuffled else None,
        jax.device_get(probe.unscaled(features.centre, features.spread)),
        np.asarray(strength),
    )


def _lowest(loss: Float[np.ndarray, "strength *rest"]) -> Int[np.ndarray, "*rest"]:
    """Index of the strength with the lowest loss; one that diverged is none."""
    if np.isnan(loss).all(0).any():
        raise InputError("The search diverges with every strength: ask for a lower learning_rate.")
    return np.asarray(np.nanargmin(loss, axis=0))


def _held_out(solution: Solution, splits: Sequence[Split], tested: Sequence[int]) -> HeldOut:
    """Of splits that are ordered by seed and fold."""
    labellings = list({id(splits[i].labelling): splits[i].labelling for i in tested}.values())
    by_seed = np.reshape(tested, (len(labellings), -1))
    train_loss, validation_loss = (
        np.asarray(each)[:, by_seed] for each in (solution.train_loss, solution.validation_loss)
    )
    strength = _lowest(validation_loss)
    n_outputs = solution.outputs.shape[2]
    outputs = np.full(
        (len(labellings), n_outputs, len(labellings[0].folds)), np.nan, solution.outputs.dtype
    )
    for seed, labelling in enumerate(labellings):
        known = labelling.folds[labelling.folds >= 0]
        for fold, split in enumerate(by_seed[seed]):
            said = solution.outputs[strength[seed, fold], split]
            outputs[seed][:, labelling.folds == fold] = said[:, : len(known)][:, known == fold]
    return HeldOut(outputs, strength, train_loss, validation_loss)


def collect(
    target: Target,
    recipe: Recipe,
    splits: Sequence[Split],
    layers: Sequence[LayerProbes],
    groups: Int[np.ndarray, " example"] | None,
    features: str | None,
) -> Probes:
    """The probes of all layers."""
    every = jax.tree.map(lambda *leaves: np.stack(leaves), *layers)
    real = {s.labelling.seed: s.labelling for s in splits if not s.labelling.shuffled}
    shuffled = {s.labelling.seed: s.labelling for s in splits if s.labelling.shuffled}
    return Probes(
        target,
        recipe,
        tuple(real),
        np.stack([one.folds for one in real.values()]),
        groups,
        every.held_out,
        every.shuffled,
        np.stack([one.labels for one in shuffled.values()]) if shuffled else None,
        every.probe,
        every.strength,
        features,
    )
