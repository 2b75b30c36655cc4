"""The sites that one sweep patches, read from text."""

import dataclasses
from collections.abc import Sequence

from jaxasr_interp.errors import InputError
from jaxasr_interp.interventions.places import Heads, parse_place
from jaxasr_interp.model.sites import Stack, counts_frames, head_axis


@dataclasses.dataclass(frozen=True)
class SweptSites:
    """The sites of one plan, read from text.

    Attributes:
        stack: stack of the sites.
        names: names of the sites.
        layers: layer numbers; `None` for all layers.
        heads: head numbers for sites that have heads, `"each"` for all of them one by one, or
            `None` for whole sites.
    """

    stack: Stack
    names: tuple[str, ...]
    layers: tuple[int, ...] | None
    heads: Heads

    @classmethod
    def read(cls, texts: Sequence[str]) -> "SweptSites":
        """Read places that share a stack, layers and heads.

        Raises:
            InputError: a text is no place, or the places cannot share a plan.
        """
        places = [parse_place(text) for text in texts]
        with_heads = [place for place in places if head_axis(place.site) is not None]
        for what, of_each in (
            ("stack", {place.stack for place in places}),
            ("layers", {place.layers for place in places}),
            ("heads", {place.heads for place in with_heads}),
        ):
            if len(of_each) > 1:
                raise InputError(
                    f"The sites {', '.join(texts)} differ in their {what}: name the same in each "
                    "--site, or sweep them apart."
                )
        return cls(
            stack=places[0].stack,
            names=tuple(place.site for place in places),
            layers=places[0].layers,
            heads=with_heads[0].heads if with_heads else None,
        )

    @property
    def timed(self) -> bool:
        """Whether positions are encoder frames."""
        return counts_frames(self.stack, self.names[0])

    @property
    def default_window(self) -> int | str:
        """The positions that one patch covers by default: a token, or 0.2 s."""
        return "200ms" if self.timed else 1
