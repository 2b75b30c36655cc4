"""The cells that a command sweeps, read from `--site`, `--positions`, `--window` and others."""

import dataclasses
from collections.abc import Sequence

from jaxasr_interp.cli.options import parse_alphas, parse_memory
from jaxasr_interp.generation.word_times import Word
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.patching.contrast import Contrast
from jaxasr_interp.patching.plan import SweepPlan
from jaxasr_interp.patching.planning import PlanOptions, plan_sweep
from jaxasr_interp.patching.runs import kept_sites
from jaxasr_interp.patching.swept_sites import SweptSites
from jaxasr_interp.speech.positions import resolve_windows


@dataclasses.dataclass(frozen=True)
class Selection:
    """The cells that the options of a command select.

    Attributes:
        sites: the sites to sweep.
        positions: positions as text; by default all tokens, or the duration of the clip.
        options: windows, strengths and memory.
    """

    sites: SweptSites
    positions: str | None
    options: PlanOptions

    @classmethod
    def read(
        cls,
        sites: Sequence[str],
        *,
        positions: str | None,
        window: str | None,
        alpha: str,
        memory: str | None,
    ) -> "Selection":
        """Read the options, before any work is done.

        Raises:
            InputError: an option cannot be read, or there is no such site.
        """
        swept = SweptSites.read(sites)
        width, stride = _read_window(window, swept)
        options = PlanOptions(width, stride, parse_alphas(alpha), parse_memory(memory))
        return cls(swept, positions, options)

    @property
    def timed(self) -> bool:
        """Whether positions are encoder frames."""
        return self.sites.timed

    @property
    def encoder_sites(self) -> frozenset[str]:
        """The encoder activations that the sweep starts from."""
        return kept_sites(self.sites.stack, frozenset(self.sites.names)).encoder

    def plan(self, model: Whisper, contrast: Contrast, words: Sequence[Word]) -> SweepPlan:
        """Plan the sweep.

        Args:
            model: the model.
            contrast: the runs that are swept.
            words: words of the clean clip with their frames, if positions are frames.

        Raises:
            InputError: see `plan_sweep`.
        """
        positions, options = self.positions, self.options
        if self.timed:
            positions = positions or f"0:{contrast.frames}"
            named = [(word.name, word.frames) for word in words]
            options = dataclasses.replace(options, words=named)
        return plan_sweep(
            model,
            tokens=contrast.tokens,
            stack=self.sites.stack,
            site=self.sites.names,
            layers=self.sites.layers,
            heads=self.sites.heads,
            positions=positions,
            options=options,
        )


def _read_window(text: str | None, sites: SweptSites) -> tuple[int | str, str | None]:
    """Read width and stride; by default the sites' width, and a stride equal to it."""
    if text is None:
        return sites.default_window, None
    width, colon, stride = text.partition(":")
    wanted = width, stride if colon else None
    # Errors in the text are found here, before the model is loaded.
    resolve_windows(None, 1, width=wanted[0], stride=wanted[1], timed=sites.timed)
    return wanted
