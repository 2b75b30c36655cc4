"""Centred kernel alignment: how similarly two layers arrange the same clips, whatever their axes.

`CKA(X, Y) = HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y))` with linear kernels: 1 for representations
that are equal up to rotation and scale. Kornblith et al. 2019 (arXiv 1905.00414).

The usual estimate of HSIC, `‖XᵀY‖² / (n - 1)²` of centred rows, is biased: with as many features as
rows even unrelated noise seems similar. The unbiased estimate of Song et al. 2012 (JMLR 13) leaves
out each row's kernel with itself; Nguyen et al. 2021 (arXiv 2010.15327) use it batch by batch. Here
it is computed from all rows together: for linear kernels it is a function of sums over rows, which
are gathered block by block.
"""

import dataclasses
import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from jaxasr_interp.errors import InputError
from jaxasr_interp.extraction.representations import features_of, layers_of, row_axes, row_blocks
from jaxasr_interp.pytree import summary
from jaxasr_interp.runtime.frames import to_dataframe
from jaxasr_interp.runtime.memory import default_memory
from jaxasr_interp.runtime.progress import Progress
from jaxasr_interp.runtime.transforms import host_only

if TYPE_CHECKING:
    import pandas
    import xarray

_FEWEST_ROWS = 4

type Layer = tuple[str, int]


@dataclasses.dataclass(frozen=True)
class Similarity:
    """CKA between the layers of one or two variables.

    Attributes:
        first: name of the variable whose layers are the rows.
        second: name of the variable whose layers are the columns.
        cka: 1 where two layers arrange the rows in the same way. The unbiased estimate can lie a
            little below 0 or above 1, and is NaN where a layer differs between clips no more than
            by chance.
        rows: number of clips, or of positions of clips, that were compared.
        unbiased: whether HSIC was estimated without bias.
    """

    first: str
    second: str
    cka: Float[np.ndarray, "first_layer second_layer"]
    rows: int
    unbiased: bool

    __repr__ = summary

    def to_dataset(self) -> "xarray.Dataset":
        """Return the matrix with named axes."""
        import xarray

        return xarray.Dataset(
            {"cka": (("first_layer", "second_layer"), self.cka)},
            attrs={
                "first": self.first,
                "second": self.second,
                "rows": self.rows,
                "estimator": "unbiased" if self.unbiased else "biased",
            },
        )

    def to_dataframe(self) -> "pandas.DataFrame":
        """Return a table with a row for each pair of layers."""
        return to_dataframe(self.to_dataset(), ("first_layer", "second_layer"))


@host_only()
def cka(
    dataset: "xarray.Dataset",
    first: str,
    second: str | None = None,
    *,
    unbiased: bool = True,
    memory: int | None = None,
    on_progress: Progress | None = None,
) -> Similarity:
    """Compare all layers of a variable with each other, or with those of another.

    The store is read a few clips at a time; where the sums of all pairs of layers do not fit into
    memory, more than once. The unbiased estimate assumes that rows are independent. Clips are; the
    frames of one clip are not, so positions count as more independent rows than there are.

    Args:
        dataset: an activation store, from `open_activations`.
        first: a variable, such as `encoder.resid_post.mean`.
        second: another variable with the same rows; by default `first`.
        unbiased: estimate HSIC without bias, rather than as Kornblith et al. do.
        memory: bytes that the sums may take; by default a quarter of the machine's.
        on_progress: called with the number of clips read so far, of all, and the variables.

    Returns:
        One value for each pair of layers.

    Raises:
        InputError: no such variable, two with different rows, or fewer than four rows.
    """
    second = first if second is None else second
    given, others = (row_axes(dataset, name) for name in (first, second))
    if given != others:
        raise InputError(
            f"{first} has rows by {_said(given)}, {second} by {_said(others)}: choose two with "
            "the same rows."
        )
    rows, columns = (
        [(name, layer) for layer in layers_of(dataset, name)] for name in (first, second)
    )
    across = itertools.product(rows, columns)
    within = [(layer, layer) for layer in dict.fromkeys([*rows, *columns])]
    pairs = list(dict.fromkeys(_ordered(pair) for pair in itertools.chain(within, across)))
    width = {name: features_of(dataset, name) for name in (first, second)}
    largest = 8 * max(width.values()) ** 2
    at_once = max(1, (default_memory() if memory is None else memory) // largest)
    groups = list(itertools.batched(pairs, at_once))
    name = first if first == second else f"{first} and {second}"
    total, done = dataset.sizes["clip"] * len(groups), 0
    sums: dict[tuple[Layer, Layer], HsicSums] = {}
    values: dict[tuple[Layer, Layer], float] = {}
    for group in groups:
        sums = {(a, b): HsicSums(width[a[0]], width[b[0]]) for a, b in group}
        for n_clips, block in _blocks(dataset, {layer for pair in group for layer in pair}):
            for a, b in group:
                sums[a, b].add(block[a], block[b])
            done += n_clips
            if on_progress is not None:
                on_progress(done, total, name)
        values |= {pair: one.hsic(unbiased) for pair, one in sums.items()}
    n = next(iter(sums.values())).n
    matrix = [[_alignment(values, a, b) for b in columns] for a in rows]
    return Similarity(first, second, np.array(matrix), n, unbiased)


class HsicSums:
    """Sums over rows `x_i`, `y_i`, from which HSIC with linear kernels is computed."""

    def __init__(self, d_first: int, d_second: int):
        self.n = 0
        self._x, self._y = np.zeros(d_first), np.zeros(d_second)
        self._cross = np.zeros((d_first, d_second))
        self._x_by_norm, self._y_by_norm = np.zeros(d_first), np.zeros(d_second)
        self._x_norm = self._y_norm = self._norms = 0.0

    def add(
        self, x: Float[np.ndarray, "rows d_first"], y: Float[np.ndarray, "rows d_second"]
    ) -> None:
        """Add some rows to the sums."""
        x_norm, y_norm = np.square(x).sum(1), np.square(y).sum(1)
        self.n += len(x)
        self._x += x.sum(0)
        self._y += y.sum(0)
        self._cross += x.T @ y
        self._x_by_norm += y_norm @ x
        self._y_by_norm += x_norm @ y
        self._x_norm += float(x_norm.sum())
        self._y_norm += float(y_norm.sum())
        self._norms += float(x_norm @ y_norm)

    def hsic(self, unbiased: bool) -> float:
        """Compute the Hilbert-Schmidt independence criterion of the rows added so far.

        Unbiased, with `K̃` and `L̃` the kernels without their diagonals, `(tr K̃L̃ +
        1ᵀK̃1 1ᵀL̃1 / ((n - 1)(n - 2)) - 2 / (n - 2) 1ᵀK̃L̃1) / (n (n - 3))`; biased,
        `‖XᵀY - n x̄ȳᵀ‖² / (n - 1)²`.

        Raises:
            InputError: there are fewer than four rows.
        """
        n = self.n
        if n < _FEWEST_ROWS:
            raise InputError(f"There are {n} rows: CKA takes {_FEWEST_ROWS} or more.")
        if not unbiased:
            centred = self._cross - np.outer(self._x, self._y) / n
            return float(np.square(centred).sum()) / (n - 1) ** 2
        trace = float(np.square(self._cross).sum()) - self._norms
        of_first = float(self._x @ self._x) - self._x_norm
        of_second = float(self._y @ self._y) - self._y_norm
        across = float(
            self._x @ self._cross @ self._y
            - self._x @ self._x_by_norm
            - self._y @ self._y_by_norm
            + self._norms
        )
        expected = of_first * of_second / ((n - 1) * (n - 2)) - 2 / (n - 2) * across
        return (trace + expected) / (n * (n - 3))


def _blocks(dataset: "xarray.Dataset", layers: Iterable[Layer]):
    """Yield the rows of each of these layers, block after block."""
    chosen: dict[str, list[int]] = {}
    for name, layer in sorted(layers):
        chosen.setdefault(name, []).append(layer)
    for n_clips, arrays in row_blocks(dataset, list(chosen.items())):
        yield (
            n_clips,
            {
                (name, layer): array[:, i]
                for (name, of), array in zip(chosen.items(), arrays, strict=True)
                for i, layer in enumerate(of)
            },
        )


def _alignment(values: dict[tuple[Layer, Layer], float], a: Layer, b: Layer) -> float:
    own = values[a, a] * values[b, b]
    return values[_ordered((a, b))] / own**0.5 if min(values[a, a], values[b, b]) > 0 else np.nan


def _ordered(pair: tuple[Layer, Layer]) -> tuple[Layer, Layer]:
    """Put a pair of layers in a fixed order, since HSIC is symmetric."""
    return min(pair), max(pair)


def _said(axes: dict[str, int]) -> str:
    return " and ".join(f"{axis} ({n})" for axis, n in axes.items())
