"""Activations of many clips, reduced on the device and stored: see `extract`."""

from jaxasr_interp.extraction.control import random_model
from jaxasr_interp.extraction.extract import DEFAULT_SITES, STORE_DTYPES, Extraction, extract
from jaxasr_interp.extraction.request import Request, parse_request
from jaxasr_interp.extraction.store import open_activations

__all__ = [
    "DEFAULT_SITES",
    "STORE_DTYPES",
    "Extraction",
    "Request",
    "extract",
    "open_activations",
    "parse_request",
    "random_model",
]
