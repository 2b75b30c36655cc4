"""Requests for activations: a site and a reduction, such as `encoder.resid_post:mean`.

=============  =====================================================================================
`mean`, `max`  over the frames that hold sound, or over the tokens of the text
`end`          the end-of-text token, which follows the text (decoder)
`at=3,-1`      single tokens of the run, prompt included, or frames and times: `at=10,1.2s`;
               negative numbers count from the end of the run or of the sound
`word=COLUMN`  mean over the frames, or tokens, of the word that a column of the manifest names, at
               its first occurrence
`every=K`      every K-th position from the first on, NaN after the end of the sound or of the run
`all`          every position: all frames of the window, or all tokens of the run and NaN after them
=============  =====================================================================================

The run of the decoder is `[prompt, text, <|endoftext|>]`.
"""

import dataclasses
import re

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.sites import SITES, Stack, check_site, check_stack

REDUCTIONS = ("mean", "max", "end", "at", "word", "every", "all")
_COUNTED = ("pos", "frame", "mel_frame", "query")
_PLACE = re.compile(r"-?\d+|\d+(?:\.\d+)?(?:ms|s)")


@dataclasses.dataclass(frozen=True)
class Request:
    """One activation to extract.

    Attributes:
        stack: encoder or decoder.
        site: site of the stack.
        reduction: one of `REDUCTIONS`.
        argument: places of `at`, column of `word`, or step of `every`.
    """

    stack: Stack
    site: str
    reduction: str
    argument: str = ""

    def __str__(self) -> str:
        reduction = f"{self.reduction}={self.argument}" if self.argument else self.reduction
        return f"{self.stack}.{self.site}:{reduction}"

    @property
    def name(self) -> str:
        """Name of the variable in the store: `encoder.resid_post.mean`, `encoder.z.every5`.

        Places are joined with `_` (`at10_-1`), and so is a column (`word_target`).
        """
        # A dot would look like another part of the name, so `p` replaces it.
        argument = self.argument.replace(",", "_").replace(".", "p")
        between = "_" if self.reduction == "word" else ""
        return f"{self.stack}.{self.site}.{self.reduction}{between}{argument}"

    @property
    def site_axes(self) -> tuple[str, ...]:
        """Axes of the activation before it is reduced."""
        return SITES[self.stack][self.site]

    @property
    def axis(self) -> int:
        """Index of the axis that counts positions."""
        return next(i for i, axis in enumerate(self.site_axes) if axis in _COUNTED)

    @property
    def counts_tokens(self) -> bool:
        """Whether positions are tokens, rather than frames."""
        axis = self.site_axes[self.axis]
        return axis == "pos" or (axis == "query" and self.stack == "decoder")

    @property
    def axes(self) -> tuple[str, ...]:
        """Axes of the reduced activation."""
        before, position, after = (
            self.site_axes[: self.axis],
            self.site_axes[self.axis],
            self.site_axes[self.axis + 1 :],
        )
        match self.reduction:
            case "all":
                kept = (position,)
            case "at" | "every":
                kept = (f"{position}_{self.name.rsplit('.', 1)[1]}",)
            case _:
                kept = ()
        return (*before, *kept, *after)

    @property
    def step(self) -> int:
        """Distance from one kept position to the next."""
        return int(self.argument) if self.reduction == "every" else 1

    @property
    def places(self) -> list[str]:
        """The single positions asked for."""
        return self.argument.split(",") if self.reduction == "at" else []


def parse_request(text: str) -> Request:
    """Read a request; see the top of this module.

    Raises:
        InputError: there is no such stack, site or reduction, or the reduction does not fit the
            site.
    """
    place, _, how = text.strip().partition(":")
    stack, _, site = place.partition(".")
    reduction, _, argument = how.partition("=")
    request = Request(check_stack(stack), check_site(stack, site), reduction, argument)
    if reduction not in REDUCTIONS:
        raise InputError(
            f"{text!r} does not say how positions are reduced: write {place}:mean, or one of "
            f"{', '.join(REDUCTIONS)}."
        )
    if site.endswith("attn_scores"):
        raise InputError(
            f"{text!r} is not extracted, as it is infinite where nothing may be attended to: ask "
            f"for {place.replace('attn_scores', 'pattern')}."
        )
    if reduction == "end" and not request.counts_tokens:
        raise InputError(f"{text!r} has no end-of-text: that is a token, and it counts frames.")
    _check_argument(text, request)
    return request


def _check_argument(text: str, request: Request) -> None:
    match request.reduction:
        case "at":
            fine = all(_PLACE.fullmatch(place) for place in request.places)
            timed = any(place.endswith("s") for place in request.places)
            if not fine or (timed and request.counts_tokens):
                what = "tokens, as in at=3,-1" if request.counts_tokens else "as in at=10,-1,1.2s"
                raise InputError(f"{text!r} names positions that cannot be read: write {what}.")
            if len(set(request.places)) < len(request.places):
                raise InputError(f"{text!r} names a position twice.")
        case "word":
            if not request.argument:
                raise InputError(f"{text!r} names no column of the manifest: write word=COLUMN.")
        case "every":
            if not re.fullmatch(r"[1-9]\d*", request.argument):
                raise InputError(f"{text!r} has no step: write a whole number, as in every=5.")
        case _:
            if request.argument:
                raise InputError(f"{text!r} takes nothing behind {request.reduction!r}.")


def parse_requests(texts: list[str]) -> tuple[Request, ...]:
    """Read requests.

    Raises:
        InputError: there are none, one cannot be read, or two are the same.
    """
    requests = tuple(parse_request(text) for text in texts)
    if not requests:
        raise InputError("There is nothing to extract: name a site, as in encoder.resid_post:mean.")
    names = [request.name for request in requests]
    twice = [str(one) for one in requests if names.count(one.name) > 1]
    if twice:
        raise InputError(f"{twice[0]} is asked for twice.")
    return requests
