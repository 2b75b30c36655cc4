"""Places as text: `STACK.SITE[@LAYERS[.HEADS]]` names a site, layers and heads.

`decoder.cross_attn_out@3`, `encoder.resid_post@*`, `decoder.z@0-3,5.0,2`, `decoder.z@*.each`.
Layers and heads are numbers, ranges (`0-3`), lists (`0,3-5,-1`) or `*` for all; sites outside the
layers have none. In a sweep, a place without layers means all of them, and `each` means all heads
one by one.
"""

import dataclasses
import re
from typing import Literal

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.sites import SITES, Stack, check_site, check_stack, head_axis

type Heads = tuple[int, ...] | Literal["each"] | None


@dataclasses.dataclass(frozen=True)
class Place:
    """A site with layers and heads; numbers may count from the end.

    Attributes:
        stack: stack of the site.
        site: the site.
        layers: layer numbers; `None` for all of them, or for a site outside the layers.
        heads: head numbers, `"each"` for all of them one by one, or `None` for the whole site.
    """

    stack: Stack
    site: str
    layers: tuple[int, ...] | None = None
    heads: Heads = None


def parse_place(text: str, *, layers_needed: bool = False) -> Place:
    """Read `STACK.SITE[@LAYERS[.HEADS]]`.

    Args:
        text: text of the place.
        layers_needed: whether the text must name layers if the site lies in the layers.

    Raises:
        InputError: the text cannot be read, or there is no such site.
    """
    where, _, cells = text.partition("@")
    stack, dot, site = where.partition(".")
    if not dot:
        raise InputError(
            f"The place {text!r} lacks a stack: write decoder.{text} or encoder.{text}."
        )
    known = check_stack(stack)
    check_site(known, site)
    if SITES[known][site][0] != "layer":
        if cells:
            raise InputError(f"The site {site} lies outside the layers: leave out @{cells}.")
        return Place(known, site)
    if not cells:
        if layers_needed:
            raise InputError(
                f"The place {text!r} has to say in which layers: {stack}.{site}@3, @0-3 or @*."
            )
        return Place(known, site)
    layers, dot, heads = cells.partition(".")
    if dot and not heads:
        raise InputError(f"In {text!r} the heads are missing after the dot.")
    if heads and head_axis(site) is None:
        raise InputError(f"The site {site} has no heads: leave out .{heads}.")
    return Place(known, site, _parse_all("layers", layers), _parse_heads(heads))


def parse_indices(what: str, text: str) -> tuple[int, ...]:
    """Read `0,3-5,-1` as `(0, 3, 4, 5, -1)`.

    Raises:
        InputError: the text cannot be read.
    """
    indices: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(?:(-?\d+)|(\d+)-(\d+))\s*", part)
        if match is None or (match[2] and int(match[2]) > int(match[3])):
            raise InputError(f"The {what} {text!r} cannot be read: write them as 0,3-5,-1.")
        indices += [int(match[1])] if match[1] else range(int(match[2]), int(match[3]) + 1)
    return tuple(indices)


def _parse_heads(text: str) -> Heads:
    if not text:
        return None
    return "each" if text == "each" else _parse_all("heads", text)


def _parse_all(what: str, text: str) -> tuple[int, ...] | None:
    return None if text == "*" else parse_indices(what, text)
