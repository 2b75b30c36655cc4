"""Results as tables: a row for each cell, a column for each coordinate and value."""

import itertools
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Shaped

if TYPE_CHECKING:
    import pandas
    import xarray


def to_dataframe(
    dataset: "xarray.Dataset", rows: Sequence[Hashable], spread: Sequence[str] = ()
) -> "pandas.DataFrame":
    """Return a result as a table.

    Args:
        dataset: arrays with named axes.
        rows: the axes whose cells are the rows. Their coordinates are the first columns.
        spread: axes that are spread over columns, such as `errors.transcript.word.hit`.

    Returns:
        The table. What has other axes than these is not in it.
    """
    import pandas

    coordinates: dict[Hashable, xarray.DataArray] = {axis: dataset[axis] for axis in rows}
    coordinates |= dict(dataset.coords)
    arrays = coordinates | dict(dataset.data_vars)
    known = {*rows, *spread}
    return pandas.DataFrame(
        {
            name: values
            for of, array in arrays.items()
            if known.issuperset(array.dims) and of not in spread
            for name, values in _columns(dataset, str(of), array, rows)
        }
    )


def _columns(
    dataset: "xarray.Dataset", name: str, array: "xarray.DataArray", rows: Sequence[Hashable]
) -> Iterator[tuple[str, Shaped[np.ndarray, " row"]]]:
    """Yield the columns of one array, which are several if some of its axes are spread."""
    across = [axis for axis in array.dims if axis not in rows]
    missing = {axis: dataset.sizes[axis] for axis in rows if axis not in array.dims}
    for index in itertools.product(*(range(array.sizes[axis]) for axis in across)):
        where: dict[Any, int] = dict(zip(across, index, strict=True))
        labels = [str(dataset[axis].values[i]) for axis, i in where.items()]
        whole = array.isel(where).expand_dims(missing).transpose(*rows)
        yield ".".join([name, *labels]), whole.values.reshape(-1)
