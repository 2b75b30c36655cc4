"""What `ablate` and `ablate-text` share: how `--kind` is read, and which sites it takes away."""

from collections.abc import Mapping

from jaxasr_interp.errors import InputError
from jaxasr_interp.interventions.kind_text import KindText, parse_kind
from jaxasr_interp.model.sites import COMPONENT_SITES, head_axis

DEFAULT_REFERENCES = {"mix": "noise"}
"""What the reference run of a mix hears, where its kind does not say it."""

_KNOCKED_OUT = "decoder.cross_pattern@*.each"


def read_kind(text: str, references: Mapping[str, str] = DEFAULT_REFERENCES) -> KindText:
    """Read `--kind`.

    Args:
        text: as edits have it, without the place: `zero`, `noise:std=0.5`.
        references: the `ref` of the kinds that need not say it.

    Raises:
        InputError: the text is something else.
    """
    try:
        return parse_kind(text, references=references)
    except InputError as error:
        raise InputError(f"The kind {text!r} cannot be read: {error}") from None


def default_sites(kind: KindText) -> list[str]:
    """Every component of the decoder, heads one by one; or the cross-attention of a knock-out."""
    if kind.name == "knockout":
        return [_KNOCKED_OUT]
    return [
        f"decoder.{site}" if head_axis(site) is None else f"decoder.{site}@*.each"
        for site in COMPONENT_SITES["decoder"]
    ]
