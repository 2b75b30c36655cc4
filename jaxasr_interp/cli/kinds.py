"""The kinds of ablation, as they are written on the command line."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.sites import COMPONENT_SITES, Stack
from jaxasr_interp.speech.noise import check_reference

_PHRASES = {
    "zero": "Each component set to zero",
    "mean": "Each component set to its mean",
    "mix": "Each component from another run",
    "noise": "Noise added to each component",
    "scale": "Each component scaled",
    "knockout": "Attention knocked out",
}
_PATTERNS = {"decoder": ("cross_pattern",), "encoder": ("pattern",)}
_KEYS = {"zero": "", "mean": "", "mix": "", "noise": "std", "scale": "factor", "knockout": "keys"}
KINDS = "zero, mean, mix, noise:std=..., scale:factor=... or knockout:keys=START..STOP"


@dataclasses.dataclass(frozen=True)
class Kind:
    """What an ablation does, written as an edit is, without its place.

    Attributes:
        text: as it is written.
        name: `zero`, `mean`, `mix`, `noise`, `scale` or `knockout`.
        number: the noise's standard deviation, or the factor.
        keys: the positions that a knock-out hides, as text.
    """

    text: str
    name: str
    number: float = 0.0
    keys: str = ""

    @classmethod
    def read(cls, text: str) -> "Kind":
        """Read `zero`, `noise:std=0.5`, `knockout:keys=0.4s..0.9s`.

        Raises:
            InputError: the text is something else.
        """
        name, _, option = text.partition(":")
        key, _, value = option.partition("=")
        if key == _KEYS.get(name) and bool(key) == bool(option):
            if not key:
                return cls(text, name)
            if key == "keys" and ".." in value and "," not in value:
                return cls(text, name, keys=value)
            number = _number(value)
            if key != "keys" and np.isfinite(number) and (key == "factor" or number >= 0):
                return cls(text, name, number)
        raise InputError(f"The kind {text!r} cannot be read: write {KINDS}.")

    @property
    def phrase(self) -> str:
        """What it does, for a title."""
        return _PHRASES[self.name]

    def default_sites(self, stack: Stack) -> tuple[str, ...]:
        """What is taken away where no site is named."""
        return (_PATTERNS if self.name == "knockout" else COMPONENT_SITES)[stack]

    def as_edit(self, references: Sequence[str]) -> str:
        """The kind and its keys in the grammar of edits.

        Raises:
            InputError: a mean, which is then of given clips, lacks them.
        """
        if self.name not in ("mix", "mean"):
            return self.text
        if not references:
            raise InputError("A mean with --generate is of clips: give --reference.")
        return f"{self.name}:ref={','.join(references)}"

    def check_references(self, references: Sequence[str] | None) -> list[str]:
        """The references that this kind needs.

        Raises:
            InputError: there are some that it does not take.
        """
        given = list(references or [])
        if given and self.name not in ("mix", "mean"):
            raise InputError(f"--reference goes with --kind mix or mean: {self.name} needs none.")
        if self.name == "mix" and len(given) > 1:
            raise InputError("A mix has one --reference: give noise, silence or one file.")
        for name in given:
            if self.name == "mean" and name in ("noise", "silence"):
                raise InputError(
                    f"The mean is taken over clips with speech, not {name}: give files."
                )
            check_reference(name)
        return given or (["noise"] if self.name == "mix" else [])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
