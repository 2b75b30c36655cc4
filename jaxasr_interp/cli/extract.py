"""`extract`: activations of many clips, to a store."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from jaxasr_interp.checkpoint.load import load_model
from jaxasr_interp.cli.options import (
    DtypeOption,
    JsonOption,
    LanguageOption,
    ModelOption,
    OverwriteOption,
)
from jaxasr_interp.cli.output import errors, print_json
from jaxasr_interp.errors import InputError
from jaxasr_interp.extraction import DEFAULT_SITES, extract
