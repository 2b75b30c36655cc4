"""A probed variable of an activation store, with every control beside it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from jaxasr_interp.errors import InputError
from jaxasr_interp.extraction.representations import is_axis, row_axes
from jaxasr_interp.probes.fit import fit_probes
from jaxasr_interp.probes.result import Probes
from jaxasr_interp.probes.scores import Scores, majority, score_names, score_probes, selectivity
from jaxasr_interp.probes.targets import Labels

if TYPE_CHECKING:
    import xarray

MEL = "mel"
RANDOM = "random."


@dataclasses.dataclass(frozen=True)
class ProbeReport:
    """What the layers of a variable know about a target, and what controls know.

    Attributes:
        variable: of the store.
        probes: of every layer.
        curves: scores by layer: of the `probe`, of probes for `shuffled` labels, of those of
            `random weights`, with a `hidden layer`, as far as there are any.
        lines: scores that have no layers: of the commonest class (`majority`) and of the mean and
            deviation of the spectrogram (`mel`).
    """

    variable: str
    probes: Probes
    curves: Mapping[str, Scores]
    lines: Mapping[str, Mapping[str, float]]

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the scores."""
        return score_names(self.probes.target)

    @property
    def best_layer(self) -> int:
        """The layer with the highest first score."""
        return int(np.argmax(self.curves["probe"].estimate[self.scores[0]]))

    def confusion(self, layer: int) -> Float[np.ndarray, "class predicted"]:
        """Share of each class's examples, in the mean over seeds, that is taken for each class.

        Raises:
            InputError: the target has no classes.
        """
        target = self.probes.target
        if not target.classes:
            raise InputError(f"{target.name!r} has values, no classes that could be confused.")
        outputs = self.probes.held_out.outputs[layer][:, :, target.known]
        said = (outputs[:, 0] > 0) if outputs.shape[1] == 1 else outputs.argmax(1)
        counts = np.zeros((len(target.classes),) * 2)
        labels = target.labels[target.known].astype(int)
        for seed in said.astype(int):
            np.add.at(counts, (labels, seed), 1)
        return counts / counts.sum(1, keepdims=True)

    def to_dataset(self) -> "xarray.Dataset":
        """Curves, lines, confusions and selectivity in arrays with named axes."""
        import xarray

        target, curves = self.probes.target, list(self.curves)
        data: dict[str, Any] = {
            end: (
                ("curve", "score", "layer"),
                np.stack(
                    [
                        [getattr(self.curves[curve], end)[score] for score in self.scores]
                        for curve in curves
                    ]
                ),
            )
            for end in ("estimate", "low", "high")
        }
        data["line"] = (
            ("control", "score"),
            [[line[score] for score in self.scores] for line in self.lines.values()],
        )
        strengths = np.asarray(self.probes.recipe.strengths)
        data["strength"] = ("layer", strengths[self.probes.strength])
        coordinates: dict[str, Any] = {
            "curve": curves,
            "score": list(self.scores),
            "control": list(self.lines),
        }
        if target.classes:
            layers = range(len(self.probes.strength))
            data["confusion"] = (
                ("layer", "class", "predicted"),
                np.stack([self.confusion(layer) for layer in layers]),
            )
            coordinates |= {"class": list(target.classes), "predicted": list(target.classes)}
        if "shuffled" in self.curves:
            data["selectivity"] = (
                "layer",
                selectivity(self.curves["probe"], self.curves["shuffled"]),
            )
        groups = self.probes.groups
        attributes = {
            "variable": self.variable,
            "target": target.name,
            "examples": int(target.known.sum()),
            "groups": len(np.unique(groups[target.known])) if groups is not None else 0,
            "folds": int(self.probes.folds.max() + 1),
            "seeds": list(self.probes.seeds),
            "method": self.probes.recipe.method,
        }
        return xarray.Dataset(data, coordinates, attributes)


def probe_store(
    dataset: "xarray.Dataset",
    variable: str,
    targets: Mapping[str, Labels],
    *,
    groups: Labels | None = None,
    n_hidden: int | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
    **options: Any,
) -> dict[str, ProbeReport]:
    """Probe a variable of an activation store for several targets, with all controls.

    Args:
        dataset: from `open_activations`.
        variable: such as `encoder.resid_post.mean`, with axes clip, layer (if its site has one)
            and features.
        targets: labels of the clips, by name.
        groups: see `fit_probes`.
        n_hidden: also fit probes with a hidden layer of so many units.
        on_progress: called with the probes fitted so far, of all, and what they read.
        options: of `fit_probes`.

    Returns:
        A report for each target.

    Raises:
        InputError: there is no such variable, or it keeps positions; and see `fit_probes`.
    """
    if n_hidden is not None and n_hidden < 1:
        raise InputError(f"n_hidden is {n_hidden}: expected at least 1 unit.")
    layers = _layers(dataset, variable)
    control = _layers(dataset, RANDOM + variable) if RANDOM + variable in dataset else None
    fits: dict[str, dict[str, Probes]] = {}

    def fit(name: str, x: np.ndarray, **special: Any) -> None:
        def report(done: int, total: int) -> None:
            if on_progress is not None:
                on_progress(done, total, name)

        fits[name] = fit_probes(x, targets, groups=groups, on_progress=report, **options | special)

    fit("probe", layers, features=_site_of(variable))
    if control is not None:
        fit("random weights", control, shuffled=False)
    if n_hidden is not None:
        hidden = {"method": "adamw", "n_hidden": n_hidden, "patience": 30, "shuffled": False}
        fit("hidden layer", layers, **hidden)
    if MEL in dataset:
        fit(MEL, _layers(dataset, MEL), shuffled=False)
    return {name: _report(variable, name, fits) for name in targets}


def _site_of(variable: str) -> str | None:
    """`stack.site` of a variable `stack.site.reduction`, `None` of a control's."""
    parts = variable.split(".")
    return ".".join(parts[:2]) if len(parts) == 3 else None


def _report(variable: str, target: str, fits: Mapping[str, Mapping[str, Probes]]) -> ProbeReport:
    probes = fits["probe"][target]
    scored = {name: score_probes(fit[target]) for name, fit in fits.items()}
    curves = {name: real for name, (real, _) in scored.items() if name != MEL}
    shuffled = scored["probe"][1]
    if shuffled is not None:
        curves["shuffled"] = shuffled
    lines = {"majority": majority(probes)}
    if MEL in scored:
        lines[MEL] = {name: float(values[0]) for name, values in scored[MEL][0].estimate.items()}
    return ProbeReport(variable, probes, curves, lines)


def _layers(dataset: "xarray.Dataset", variable: str) -> Float[np.ndarray, "layer clip feature"]:
    kept = [axis for axis in row_axes(dataset, variable) if axis != "clip"]
    if kept:
        raise InputError(
            f"{variable!r} keeps {', '.join(kept)}: probes take one vector a clip, so extract it "
            "with a reduction such as mean."
        )
    values = dataset[variable]
    # Where the stacks have different depths, each has a layer axis of its own name.
    values = values.rename({axis: "layer" for axis in values.dims if is_axis(axis, "layer")})
    if "layer" not in values.dims:
        values = values.expand_dims("layer")
    layers = values.transpose("layer", "clip", ...).to_numpy()
    return layers.reshape(*layers.shape[:2], -1)
