"""The probes of a variable of an activation store, with every control beside them."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from jaxasr_interp.display import Displayed
from jaxasr_interp.errors import InputError
from jaxasr_interp.extraction.representations import is_axis, row_axes
from jaxasr_interp.probes.fit import fit_probes
from jaxasr_interp.probes.options import FitOptions
from jaxasr_interp.probes.result import Probes
from jaxasr_interp.probes.scores import Scores, majority, score_names, score_probes, selectivity
from jaxasr_interp.probes.targets import Labels
from jaxasr_interp.pytree import summary
from jaxasr_interp.runtime.frames import to_dataframe
from jaxasr_interp.runtime.progress import Progress
from jaxasr_interp.runtime.transforms import host_only

if TYPE_CHECKING:
    import pandas
    import xarray

MEL = "mel"
RANDOM = "random."


@dataclasses.dataclass(frozen=True)
class ProbeReport(Displayed):
    """Scores of the probes of a variable for a target, and scores of the controls.

    Attributes:
        variable: name of the variable in the store.
        probes: the probes of every layer.
        curves: scores by layer of the `probe`; and, where they were fitted, of probes for
            `shuffled` labels, of probes of a model with `random weights`, and of probes with a
            `hidden layer`.
        lines: scores without layers: of the commonest class (`majority`) and of the mean and
            deviation of the spectrogram (`mel`).
    """

    variable: str
    probes: Probes
    curves: Mapping[str, Scores]
    lines: Mapping[str, Mapping[str, float]]

    __repr__ = summary

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the scores."""
        return score_names(self.probes.target)

    @property
    def best_layer(self) -> int:
        """The layer with the highest first score."""
        return int(np.argmax(self.curves["probe"].estimate[self.scores[0]]))

    def confusion(self, layer: int) -> Float[np.ndarray, "class predicted"]:
        """Return the share of each class's examples for which the probes predict each class.

        The shares are means over seeds.

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
        """Return curves, lines, confusions and selectivity in arrays with named axes."""
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
        data["l2"] = ("layer", np.asarray(self.probes.options.l2)[self.probes.l2_index])
        coordinates: dict[str, Any] = {
            "curve": curves,
            "score": list(self.scores),
            "control": list(self.lines),
        }
        if target.classes:
            layers = range(len(self.probes.l2_index))
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
            "folds": self.probes.options.n_folds,
            "seeds": list(self.probes.options.seeds),
            "method": self.probes.options.method,
        }
        return xarray.Dataset(data, coordinates, attributes)

    def to_dataframe(self) -> "pandas.DataFrame":
        """Return a table with a row for each curve, score and layer."""
        return to_dataframe(self.to_dataset(), ("curve", "score", "layer"))


@host_only()
def probe_store(
    dataset: "xarray.Dataset",
    variable: str,
    targets: Mapping[str, Labels],
    *,
    groups: Labels | None = None,
    options: FitOptions | None = None,
    n_hidden: int | None = None,
    on_progress: Progress | None = None,
) -> dict[str, ProbeReport]:
    """Probe a variable of an activation store for several targets, with all controls.

    Args:
        dataset: from `open_activations`.
        variable: such as `encoder.resid_post.mean`, with axes clip, layer (if its site has one)
            and features.
        targets: labels of the clips, by name.
        groups: see `fit_probes`.
        options: see `fit_probes`; random weights and the spectrogram are probed in the same way.
        n_hidden: also fit probes with a hidden layer of this many units, with AdamW and early
            stopping.
        on_progress: called with the probes fitted so far, of how many, and what they read:
            `"probe"`, `"random weights"`, `"hidden layer"` or `"mel"`.

    Returns:
        A report for each target.

    Raises:
        InputError: there is no such variable, or it keeps positions; and see `fit_probes`.
    """
    if n_hidden is not None and n_hidden < 1:
        raise InputError(f"n_hidden is {n_hidden}: expected at least 1 unit.")
    options = FitOptions() if options is None else options
    layers = _layers(dataset, variable)
    random = _layers(dataset, RANDOM + variable) if RANDOM + variable in dataset else None
    fits: dict[str, dict[str, Probes]] = {}

    def fit(name: str, x: np.ndarray, options: FitOptions, features: str | None = None) -> None:
        def report(done: int, total: int, _: str) -> None:
            if on_progress is not None:
                on_progress(done, total, name)

        fits[name] = fit_probes(
            x,
            targets,
            features=features,
            groups=groups,
            options=options,
            on_progress=report,
        )

    control = dataclasses.replace(options, shuffled=False)
    fit("probe", layers, options, _site_of(variable))
    if random is not None:
        fit("random weights", random, control)
    if n_hidden is not None:
        hidden = dataclasses.replace(control, method="adamw", n_hidden=n_hidden, patience=30)
        fit("hidden layer", layers, hidden)
    if MEL in dataset:
        fit(MEL, _layers(dataset, MEL), control)
    return {name: _report(variable, name, fits) for name in targets}


def _site_of(variable: str) -> str | None:
    """Return `stack.site` for a variable `stack.site.reduction`, `None` for a control."""
    parts = variable.split(".")
    return ".".join(parts[:2]) if len(parts) == 3 else None


def report_of(probes: Probes) -> ProbeReport:
    """Report the scores of probes from `fit_probes`, and of the controls among them."""
    name = probes.target.name
    return _report(probes.features or "activations", name, {"probe": {name: probes}})


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
    # Where the stacks have different depths, their layer axes have different names.
    values = values.rename({axis: "layer" for axis in values.dims if is_axis(axis, "layer")})
    if "layer" not in values.dims:
        values = values.expand_dims("layer")
    layers = values.transpose("layer", "clip", ...).to_numpy()
    return layers.reshape(*layers.shape[:2], -1)
