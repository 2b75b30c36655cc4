"""Extractions in the tests' short form: options by name."""

import dataclasses

import jaxasr_interp as ji

_OPTIONS = {field.name for field in dataclasses.fields(ji.ExtractOptions)}


def extract_with(model, rows, out, **named):
    """`ji.extract`, with the options among the rest."""
    options = {name: named.pop(name) for name in _OPTIONS.intersection(named)}
    return ji.extract(model, rows, out, options=ji.ExtractOptions(**options), **named)
