"""Files: the bundled clips, made-up sound, tables of clips, and how a picture begins."""

from importlib import resources

import numpy as np

DATA = resources.files("jaxasr_interp") / "data"
GRASS, GLASS = str(DATA / "grass.flac"), str(DATA / "glass.flac")
PNG = b"\x89PNG\r\n\x1a\n"


def sound(number: int, length: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    return (0.1 * rng.standard_normal(length)).astype(np.float32)


def write_table(path, rows):
    lines = ["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
