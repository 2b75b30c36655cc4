"""The clip of which files are made."""

from importlib import resources

import pytest
import soundfile


@pytest.fixture(scope="session")
def grass():
    path = resources.files("jaxasr_interp") / "data" / "grass.flac"
    return soundfile.read(path, dtype="float32")[0]
