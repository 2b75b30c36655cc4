"""The parts that `ablate` and `ablate-text` share: reading `--kind`, and the default sites."""

from collections.abc import Mapping

from jaxasr_interp.errors import InputError
from jaxasr_interp.interventions.kind_text import KindText, parse_kind
from jaxasr_interp.model.sites import COMPONENT_SITES, head_axis

DEFAULT_REFERENCES = {"mix": "noise"}
"""The audio of the reference run of a mix, if the kind does not name it."""

_KNOCKED_OUT = "decoder.cross_pattern@*.each"


def read_kind(text: str, references: Mapping[str, str] = DEFAULT_REFERENCES) -> KindText:
    """Read `--kind`.

    Args:
        text: kind of an edit without the place, such as `zero` or `noise:std=0.5`.
        references: default `ref` of kinds.

    Raises:
        InputError: the text cannot be read.
    """
    try:
        return parse_kind(text, references=references)
    except InputError as error:
        raise InputError(f"The kind {text!r} cannot be read: {error}") from None


def default_sites(kind: KindText) -> list[str]:
    """List every component of the decoder, heads one by one; or, for knockout, cross-attention."""
    if kind.name == "knockout":
        return [_KNOCKED_OUT]
    return [
        f"decoder.{site}" if head_axis(site) is None else f"decoder.{site}@*.each"
        for site in COMPONENT_SITES["decoder"]
    ]
