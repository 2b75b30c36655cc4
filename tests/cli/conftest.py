"""Fixture: real weights, for the tests that need them."""

import pytest

from helpers.real import real_model


@pytest.fixture(autouse=True)
def _weights(request):
    if "real" in request.keywords:
        real_model("tiny.en")
