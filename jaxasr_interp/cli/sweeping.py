"""What `patch` and `ablate` share: which cells are asked for, and what is done with the results."""

import dataclasses
from collections.abc import Sequence

from jaxasr_interp.cli.options import (
    parse_alphas,
    parse_heads,
    parse_memory,
    parse_width,
)
from jaxasr_interp.errors import InputError
from jaxasr_interp.generation.word_times import Word, align_words
from jaxasr_interp.interventions.indices import parse_indices
from jaxasr_interp.model.sites import Stack, check_site, check_stack, counts_frames
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.patching.contrast import Contrast
from jaxasr_interp.patching.plan import SweepPlan
from jaxasr_interp.patching.planning import plan_sweep
from jaxasr_interp.patching.sweep import METHODS

_TIMED_WINDOW = 10


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which cells are asked for, from the options' text; `None` where nothing was said."""

    stack: Stack
    sites: tuple[str, ...]
    layers: list[int] | None
    heads: list[int] | str | None
    positions: str | None
    window: int | None
    stride: int | None
    alphas: list[float]
    memory: int | None

    @classmethod
    def read(
        cls,
        stack: str,
        sites: Sequence[str],
        *,
        layers: str | None,
        heads: str | None,
        positions: str | None,
        window: str | None,
        stride: str | None,
        alpha: str,
        memory: str | None,
    ) -> "Selection":
        """Read the options before any work is done.

        Raises:
            InputError: an option cannot be read, or there is no such stack or site.
        """
        known = check_stack(stack)
        for site in sites:
            check_site(known, site)
        timed = counts_frames(known, sites[0])
        return cls(
            stack=known,
            sites=tuple(sites),
            layers=parse_indices("layers", layers),
            heads=parse_heads(heads),
            positions=positions,
            window=parse_width("window", window, timed),
            stride=parse_width("stride", stride, timed),
            alphas=parse_alphas(alpha),
            memory=parse_memory(memory),
        )

    @property
    def timed(self) -> bool:
        """Whether positions are encoder frames."""
        return counts_frames(self.stack, self.sites[0])

    def plan(self, model: Whisper, contrast: Contrast, words: Sequence[Word]) -> SweepPlan:
        """Plan the sweep: over time, by default 0.2 s at a time as long as the clip lasts.

        Raises:
            InputError: see `plan_sweep`.
        """
        positions, window = self.positions, self.window
        if self.timed:
            positions = positions or f"0:{contrast.frames}"
            positions = ",".join(word_frames(part.strip(), words) for part in positions.split(","))
            window = _TIMED_WINDOW if window is None else window
        return plan_sweep(
            model,
            tokens=contrast.tokens,
            stack=self.stack,
            site=self.sites,
            layers=self.layers,
            heads=self.heads,
            positions=positions,
            window=window,
            stride=self.stride,
            alpha=self.alphas,
            memory=self.memory,
        )


def find_words(model: Whisper, contrast: Contrast) -> tuple[Word, ...]:
    """When the words of the clean clip are said."""
    return align_words(model, contrast.clean_mel, contrast.heard, contrast.prompt, contrast.frames)


def check_method(method: str) -> None:
    """Raise `InputError` if there is no such method."""
    if method not in METHODS:
        raise InputError(f"Unknown method {method!r}: choose one of {', '.join(METHODS)}.")


def word_frames(part: str, words: Sequence[Word]) -> str:
    """Turn `word:grass` into the window of frames in which it is said, each time that it is."""
    if not part.startswith("word:"):
        return part
    name = part.removeprefix("word:").casefold()
    found = [word.frames for word in words if word.name == name]
    if not found:
        known = ", ".join(dict.fromkeys(word.name for word in words)) or "none"
        raise InputError(f"There is no word {name!r} in the transcript; its words are: {known}.")
    return ",".join(f"{start}..{stop}" for start, stop in found)
