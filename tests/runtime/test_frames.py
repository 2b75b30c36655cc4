"""Results as tables: a row for each cell, with its coordinates and values."""

import numpy as np
import xarray

from jaxasr_interp.runtime.frames import to_dataframe


def test_every_cell_is_a_row_with_its_coordinates():
    cells = np.arange(12.0).reshape(2, 3, 2)
    dataset = xarray.Dataset(
        {
            "patched": (("metric", "layer", "pos"), cells),
            "clean": ("metric", [5.0, 6.0]),
            "across": (("layer", "pos", "side", "kind"), np.arange(24).reshape(3, 2, 2, 2)),
            "elsewhere": ("step", [1.0, 2.0]),
        },
        {
            "metric": ["kl", "log_prob"],
            "layer": [3, 5, 7],
            "token": ("pos", ["a, b", 'c"']),
            "side": ["left", "right"],
        },
    )
    table = to_dataframe(dataset, ("metric", "layer", "pos"), ("side", "kind"))
    spread = [f"across.{side}.{kind}" for side in ("left", "right") for kind in (0, 1)]
    assert [*table] == ["metric", "layer", "pos", "token", "patched", "clean", *spread]
    assert len(table) == 12
    for _, row in table.iterrows():
        one = dataset.isel(pos=row.pos).sel(metric=row.metric, layer=row.layer)
        assert row.patched == one.patched
        assert row.clean == one.clean
        assert row.token == one.token
        assert row["across.right.0"] == one.across.sel(side="right").values[0]
    narrow = to_dataframe(dataset, ("metric",))
    assert [*narrow] == ["metric", "clean"]
    assert narrow.clean.tolist() == [5.0, 6.0]
