"""What torch computed, and how far we are from it."""

from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[1] / "golden"


def worst(ours, reference) -> float:
    """Largest difference relative to the reference's largest value; infinities must coincide."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert ours.shape == reference.shape
    finite = np.isfinite(reference)
    np.testing.assert_array_equal(np.isfinite(ours), finite)
    return float(np.abs(ours[finite] - reference[finite]).max() / np.abs(reference[finite]).max())
