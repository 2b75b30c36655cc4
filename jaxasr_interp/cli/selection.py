"""The cells that a command sweeps, read from `--site`, `--positions`, `--window` and others."""

import dataclasses
from collections.abc import Sequence

from jaxasr_interp.cli.options import parse_alphas, parse_memory
from jaxasr_interp.errors import InputError
from jaxasr_interp.generation.word_times import Word
from jaxasr_interp.interventions.places import Heads, parse_place
from jaxasr_interp.model.sites import Stack, counts_frames, head_axis
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.patching.contrast import Contrast
from jaxasr_interp.patching.plan import SweepPlan
from jaxasr_interp.patching.planning import PlanOptions, plan_sweep
from jaxasr_interp.patching.runs import kept_sites
from jaxasr_interp.speech.positions import resolve_windows

_TIMED_WINDOW = "200ms"


@dataclasses.dataclass(frozen=True)
class SweptSites:
    """The sites that a command sweeps in one plan.

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
        width, stride = _read_window(window, timed=_is_timed(swept))
        options = PlanOptions(width, stride, parse_alphas(alpha), parse_memory(memory))
        return cls(swept, positions, options)

    @property
    def timed(self) -> bool:
        """Whether positions are encoder frames."""
        return _is_timed(self.sites)

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


def _is_timed(sites: SweptSites) -> bool:
    return counts_frames(sites.stack, sites.names[0])


def _read_window(text: str | None, *, timed: bool) -> tuple[str | None, str | None]:
    """Read width and stride; `None` for those that are not given."""
    if text is None:
        return (_TIMED_WINDOW if timed else None), None
    width, colon, stride = text.partition(":")
    wanted = width, stride if colon else None
    # Errors in the text are found here, before the model is loaded.
    resolve_windows(None, 1, width=wanted[0], stride=wanted[1], timed=timed)
    return wanted
