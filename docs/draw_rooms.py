"""Draw the rooms of the package and the imports between them, as the code has them.

    python docs/draw_rooms.py

writes `docs/rooms.svg`: a row imports the columns that are marked, with the number of imports. All
marks lie below the diagonal: rooms import only rooms above them.
"""

import collections
import sys
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers.rooms import BASE, ROOMS, modules, read_imports, room_of  # noqa: E402


def main() -> None:
    """Count the imports between rooms, and draw them as a table."""
    sizes = collections.Counter(room_of(name) for name in modules())
    rooms = [name for name in (*BASE, *ROOMS) if sizes[name]]
    place = {name: i for i, name in enumerate(rooms)}
    counts = np.zeros((len(rooms), len(rooms)), int)
    for module, others in read_imports().items():
        for other in others:
            pair = room_of(module), room_of(other)
            if pair[0] != pair[1] and set(pair) <= set(place):
                counts[place[pair[0]], place[pair[1]]] += 1
    figure, axes = plt.subplots(figsize=(9, 9), layout="constrained")
    shown = np.where(counts > 0, np.log1p(counts), np.nan)
    axes.imshow(shown, cmap="Blues", vmin=-0.5, vmax=np.log1p(counts.max()) * 1.1)
    for i, j in np.argwhere(counts > 0):
        axes.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=8)
    axes.plot([-0.5, len(rooms) - 0.5], [-0.5, len(rooms) - 0.5], color="grey", linewidth=0.8)
    labels = [f"{name} ({sizes[name]})" if name in ROOMS else name for name in rooms]
    axes.set_yticks(range(len(rooms)), labels)
    axes.set_xticks(range(len(rooms)), rooms, rotation=90)
    axes.xaxis.tick_top()
    axes.set_title("A row imports the marked columns (number of imports); modules in brackets")
    axes.set_xticks(np.arange(len(rooms)) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rooms)) - 0.5, minor=True)
    axes.grid(which="minor", color="0.9", linewidth=0.5)
    axes.tick_params(which="both", length=0)
    matplotlib.rcParams["svg.hashsalt"] = "rooms"  # The same code gives the same file.
    figure.savefig(ROOT / "docs" / "rooms.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
