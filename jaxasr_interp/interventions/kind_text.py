"""Kinds of edits as text: `KIND[:KEY=VALUE ...]`, such as `noise:std=0.5`; see `grammar`."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxasr_interp.errors import InputError
from jaxasr_interp.interventions.kinds import (
    Add,
    Interchange,
    Knockout,
    Mean,
    Noise,
    Scale,
    Zero,
)
from jaxasr_interp.model.config import WhisperConfig
from jaxasr_interp.model.edits import Edit
from jaxasr_interp.model.sites import Stack
from jaxasr_interp.speech.noise import check_reference
from jaxasr_interp.speech.positions import Window, resolve_windows

KINDS: dict[str, set[str]] = {
    "zero": set(),
    "scale": {"factor"},
    "noise": {"std", "seed"},
    "add": {"vector"},
    "mix": {"ref", "seed"},
    "mean": {"ref"},
    "knockout": {"keys"},
}
"""The kinds of edits, and the keys that each takes in addition to those of the place."""
_OPTIONAL = {"seed"}
_NUMBERS = {"factor", "std", "seed", "alpha"}
_LARGEST_SEED = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class KindText:
    """The kind of an edit after its text was read, before it becomes an edit of some site.

    Attributes:
        name: one of `KINDS`.
        values: the text of each key's value.
    """

    name: str
    values: dict[str, str]

    @property
    def reference(self) -> str | None:
        """The audio of the reference run of a mix; `None` for the other kinds."""
        return self.values["ref"] if self.name == "mix" else None

    @property
    def references(self) -> tuple[str, ...]:
        """The clips that a mean is taken over; none for the other kinds."""
        named = self.values["ref"] if self.name == "mean" else ""
        return tuple(named.split(",")) if named else ()

    @property
    def text(self) -> str:
        """The text of the kind, with all keys that have a value."""
        return ":".join([self.name, *(f"{key}={value}" for key, value in self.values.items())])

    @property
    def seed(self) -> int:
        """The seed of the noise, which is an edit's own or the audio of the reference run."""
        return int(self.number("seed")) if "seed" in self.values else 0

    def number(self, key: str) -> float:
        """Return the value of a key as a number.

        Raises:
            InputError: the value is no number, or does not fit the key.
        """
        try:
            number = float(self.values[key])
        except ValueError:
            number = float("nan")
        fits = np.isfinite(number) and (key not in ("std", "seed") or number >= 0)
        if not fits or (key == "seed" and (number != int(number) or number > _LARGEST_SEED)):
            raise InputError(f"{key}={self.values[key]} is not a fitting number.")
        return number

    def edit(
        self,
        stack: Stack,
        site: str,
        config: WhisperConfig,
        *,
        from_first_step: bool = False,
        n_tokens: int | None = None,
    ) -> Edit:
        """Make the edit of every cell of a site.

        Args:
            stack: stack of the site.
            site: the site.
            config: sizes of the model.
            from_first_step: whether positions count from the one that predicts the first token.
            n_tokens: tokens of the run, if they are known before it.

        Raises:
            InputError: a value cannot be read or does not fit the site.
        """
        match self.name:
            case "zero":
                return Zero()
            case "scale":
                return Scale(self.number("factor"))
            case "noise":
                return Noise(self.number("std"), self.seed)
            case "add":
                return Add(_load_vector(self.values["vector"]))
            case "mix":
                return Interchange()
            case "mean":
                return Mean(self.references, stack, site, from_first_step)
            case "knockout":
                return self._knockout(stack, site, config, n_tokens)
            case _:
                raise AssertionError(f"{self.name} is a kind without an edit")

    def _knockout(
        self, stack: Stack, site: str, config: WhisperConfig, n_tokens: int | None
    ) -> Knockout:
        if site not in ("pattern", "cross_pattern"):
            raise InputError("Attention is knocked out at pattern or cross_pattern.")
        timed = stack == "encoder" or site == "cross_pattern"
        keys = self.values["keys"]
        if n_tokens is None or timed:
            windows = windows_in_any_run("keys", keys, config, timed=timed)
        else:
            windows = resolve_windows(keys, n_tokens)
        if len(windows) != 1:
            raise InputError(f"keys={keys} are several windows: give one.")
        start, stop = windows[0]
        return Knockout(start, stop)


def parse_kind(
    text: str, also: Sequence[str] = (), references: Mapping[str, str] | None = None
) -> KindText:
    """Read `KIND[:KEY=VALUE ...]`.

    Args:
        text: text such as `noise:std=0.5:seed=1`.
        also: keys that are allowed in addition to those of the kind.
        references: default of `ref` for some kinds; `""` for a mean of clips that the caller
            knows.

    Raises:
        InputError: there is no such kind or key, a key is missing, or its value does not fit or is
            given twice.
    """
    name, *options = text.split(":")
    if name not in KINDS:
        raise InputError(f"The kind {name!r} is none of {', '.join(KINDS)}.")
    values: dict[str, str] = {}
    for key, _, value in (option.partition("=") for option in _rejoined(options)):
        if key not in KINDS[name] | set(also):
            known = ", ".join(sorted(KINDS[name] | set(also))) or "none"
            raise InputError(f"The kind {name} takes no {key!r} but {known}.")
        if not value or key in values:
            raise InputError(f"The key {key} needs one value, as in {key}=....")
        values[key] = value
    if references and name in references:
        values = {"ref": references[name]} | values
    missing = KINDS[name] - _OPTIONAL - set(values)
    if missing:
        raise InputError(f"The kind {name} needs {min(missing)}=....")
    kind = KindText(name, values)
    for key in values:
        if key in _NUMBERS:
            kind.number(key)
    if kind.reference is not None:
        check_reference(kind.reference)
    for file in kind.references:
        if not Path(file).is_file():
            raise InputError(f"There is no audio file {file}.")
    return kind


def windows_in_any_run(
    key: str, text: str, config: WhisperConfig, *, timed: bool
) -> tuple[Window, ...]:
    """Return the windows of positions that a key names, in a run of unknown length.

    They are windows of encoder frames if `timed` is true, otherwise of decoder tokens.

    Raises:
        InputError: the text cannot be read, or counts from the end of a text that has none yet.
    """
    if "-" in text and not timed:
        raise InputError(f"{key}={text} counts from the end of a text that has none yet.")
    size = config.max_frames if timed else config.max_tokens
    return _merged(resolve_windows(text, size, timed=timed))


def _merged(windows: Sequence[Window]) -> tuple[Window, ...]:
    """Merge windows that overlap or touch, so that each position is edited once."""
    merged: list[Window] = []
    for start, stop in sorted(windows):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(stop, merged[-1][1])
        else:
            merged.append((start, stop))
    return tuple(merged)


def _rejoined(options: Sequence[str]) -> list[str]:
    """Join again the options whose values hold colons, such as `pos=4:12`."""
    joined: list[str] = []
    for option in options:
        if joined and "=" not in option:
            joined[-1] += f":{option}"
        else:
            joined.append(option)
    return joined


def _load_vector(path: str) -> Float[Array, " d"]:
    try:
        vector = np.load(Path(path), allow_pickle=False)
    except (OSError, ValueError):
        raise InputError(f"vector={path} is no .npy file.") from None
    if vector.ndim != 1 or not np.issubdtype(vector.dtype, np.floating):
        raise InputError(
            f"vector={path} holds {vector.dtype}{list(vector.shape)}, not one float vector."
        )
    return jnp.asarray(vector)
