"""Edits as text, the same in Python and on the command line.

::

    KIND:STACK.SITE[@LAYERS[.HEADS]][:KEY=VALUE ...] [+ ...]

    zero:decoder.cross_attn_out@3
    zero:decoder.cross_z@4.7
    mix:encoder.resid_post@*:alpha=0.5:ref=noise
    scale:decoder.z@0-3.2,5:factor=0.5 + zero:decoder.mlp_out@5:step=0..3

Layers and heads are numbers, ranges (`0-3`), lists (`0,3-5,-1`) or `*`; sites outside the layers
have none. The kinds, and the keys that they take:

==========  ====================================================================================
`zero`      `a -> 0`
`scale`     `a -> factor · a`; `factor`
`noise`     `a -> a + std · ε`; `std`, `seed` (0)
`add`       `a -> a + vector`; `vector`, a `.npy` file
`mix`       `a -> a_ref`, of a run that hears `ref`: `noise` (as loud as the clip), `silence` or an
            audio file, and writes the same tokens; `seed` (0) of the noise
`mean`      `a -> mean of a`, over positions of the clips `ref`, audio files with commas between
`knockout`  attention does not see `keys`: `4..12`, or times (`0.4s..0.9s`) where keys are frames;
            at `pattern` and `cross_pattern`
==========  ====================================================================================

All take `alpha`, the strength (1): `ã = (1 - α) a + α edit(a)`; `pos`, positions as a sweep names
them, though not by words (tokens of the decoder, prompt included, or frames and times of the
encoder); and decoder edits `step`, counted from the first token that is generated: `step=0` edits
what token 0 is chosen from.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxasr_interp.errors import InputError
from jaxasr_interp.interventions.indices import parse_indices
from jaxasr_interp.interventions.intervention import Intervention
from jaxasr_interp.interventions.kinds import Add, Interchange, Knockout, Noise, Scale, Zero
from jaxasr_interp.interventions.where import END, EVERY, At, together
from jaxasr_interp.model.edits import Edit
from jaxasr_interp.model.sites import (
    SITES,
    DecoderActivations,
    EncoderActivations,
    Stack,
    check_site,
    check_stack,
    counts_frames,
    head_axis,
)
from jaxasr_interp.model.whisper import Whisper, require_tokenizer
from jaxasr_interp.patching import Utterance
from jaxasr_interp.patching.means import mean_activations
from jaxasr_interp.speech.audio import load_audio
from jaxasr_interp.speech.noise import check_reference
from jaxasr_interp.speech.positions import resolve_windows

_KEYS = {
    "zero": set[str](),
    "scale": {"factor"},
    "noise": {"std", "seed"},
    "add": {"vector"},
    "mix": {"ref", "seed"},
    "mean": {"ref"},
    "knockout": {"keys"},
}
_OPTIONAL = {"seed"}
_COMMON = {"alpha", "pos", "step"}
_LARGEST_SEED = 2**31 - 1


def parse_edit(text: str | Sequence[str], model: Whisper) -> Intervention:
    """Read an edit from its text.

    Args:
        text: as above; several texts are applied one after another.
        model: for its layers, heads and sizes.

    Returns:
        The intervention.

    Raises:
        InputError: a part cannot be read, names what the model lacks, or needs another reference
            than a part before it.
    """
    texts = [text] if isinstance(text, str) else list(text)
    parts = [_Part.read(part, model) for one in texts for part in one.split(" + ")]
    references = {(part.values["ref"], part.seed) for part in parts if part.kind == "mix"}
    if len(references) > 1:
        raise InputError(
            f"The edit {' + '.join(texts)!r} has two references: one run has one `ref` and `seed`."
        )
    reference, seed = next(iter(references), (None, 0))

    def those(stack: Stack, steps: bool) -> Edit:
        return together(
            [p.edit(model) for p in parts if p.stack == stack and ("step" in p.values) == steps]
        )

    return Intervention(
        text=" + ".join(texts),
        encoder=those("encoder", False),
        decoder=those("decoder", False),
        steps=those("decoder", True),
        reference=reference,
        seed=seed,
    )


def as_intervention(edit: Intervention | str | Sequence[str], model: Whisper) -> Intervention:
    """The intervention, read if it is text.

    Raises:
        InputError: it is neither, or the text cannot be read.
    """
    if isinstance(edit, Intervention):
        return edit
    if isinstance(edit, str) or (
        isinstance(edit, Sequence) and all(isinstance(part, str) for part in edit)
    ):
        return parse_edit(edit, model)
    raise InputError(
        f"The edit {edit!r} is neither text nor an Intervention: wrap it in one that says of which "
        "stack it is, as in ji.Intervention('mine', decoder=...)."
    )


@dataclasses.dataclass(frozen=True)
class _Part:
    """`KIND:STACK.SITE@LAYERS.HEADS:KEY=VALUE...`, read but not yet an edit."""

    text: str
    kind: str
    stack: Stack
    site: str
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    values: dict[str, str]

    @classmethod
    def read(cls, text: str, model: Whisper) -> "_Part":
        text = text.strip()
        kind, *rest = text.split(":")
        if kind not in _KEYS:
            raise _wrong(text, f"the kind {kind!r} is none of {', '.join(_KEYS)}")
        if not rest or "." not in rest[0]:
            raise _wrong(text, "after the kind comes STACK.SITE, such as decoder.mlp_out@3")
        place, *options = rest
        where, _, cells = place.partition("@")
        stack, _, site = where.partition(".")
        try:
            check_site(check_stack(stack), site)
        except InputError as error:
            raise _wrong(text, str(error).rstrip(".")) from None
        known = check_stack(stack)
        layers, heads = _cells(text, known, site, cells, model)
        values = _values(text, kind, known, options)
        part = cls(text, kind, known, site, layers, heads, values)
        if kind == "mix":
            check_reference(values["ref"])
        return part

    @property
    def seed(self) -> int:
        return int(self.number("seed")) if "seed" in self.values else 0

    def number(self, key: str) -> float:
        try:
            number = float(self.values[key])
        except ValueError:
            number = float("nan")
        fits = np.isfinite(number) and (key not in ("std", "seed") or number >= 0)
        if not fits or (key == "seed" and (number != int(number) or number > _LARGEST_SEED)):
            raise _wrong(self.text, f"{key}={self.values[key]} is not a fitting number")
        return number

    def edit(self, model: Whisper) -> Edit:
        """The edit of all the part's cells."""
        what, alpha = self._what(model), self.number("alpha") if "alpha" in self.values else 1.0
        return together(
            [
                At(what, layer, start, stop, head, alpha, self.site, self.stack)
                for layer in self.layers
                for head in self.heads
                for start, stop in self._windows(model)
            ]
        )

    def _windows(self, model: Whisper) -> tuple[tuple[int, int], ...]:
        timed = counts_frames(self.stack, self.site)
        if "step" in self.values:
            if timed:
                raise _wrong(self.text, f"step counts tokens and {self.site} counts frames")
            return self._resolve("step", model, timed)
        return self._resolve("pos", model, timed) if "pos" in self.values else ((0, END),)

    def _resolve(self, key: str, model: Whisper, timed: bool) -> tuple[tuple[int, int], ...]:
        """The windows of frames, or of tokens, that a key names."""
        text = self.values[key]
        if "-" in text and not timed:
            raise _wrong(self.text, f"{key}={text} counts from the end of a text that has none yet")
        size = model.config.max_frames if timed else model.config.max_tokens
        try:
            return _merged(resolve_windows(text, size, timed=timed))
        except InputError as error:
            raise _wrong(self.text, str(error).rstrip(".")) from None

    def _what(self, model: Whisper) -> Edit:
        match self.kind:
            case "zero":
                return Zero()
            case "scale":
                return Scale(self.number("factor"))
            case "noise":
                return Noise(self.number("std"), self.seed)
            case "add":
                return Add(_load_vector(self.text, self.values["vector"]))
            case "mix":
                return Interchange()
            case "mean":
                return Interchange(self._mean(model))
            case _:
                return self._knockout(model)

    def _knockout(self, model: Whisper) -> Knockout:
        if self.site not in ("pattern", "cross_pattern"):
            raise _wrong(self.text, "attention is knocked out at pattern or cross_pattern")
        timed = self.stack == "encoder" or self.site == "cross_pattern"
        windows = self._resolve("keys", model, timed)
        if len(windows) != 1:
            raise _wrong(self.text, f"keys={self.values['keys']} are several windows: give one")
        start, stop = windows[0]
        return Knockout(start, stop)

    def _mean(self, model: Whisper) -> EncoderActivations | DecoderActivations:
        from jaxasr_interp.patching.contrast import ask_transcript

        clips = [load_audio(path) for path in self.values["ref"].split(",")]
        runs = [ask_transcript(model, clip, clip) for clip in clips]
        prompt = len(require_tokenizer(model).prompt())
        means = mean_activations(
            model,
            [Utterance(run.clean_mel, jnp.asarray(run.tokens, jnp.int32)) for run in runs],
            stack=self.stack,
            sites=[self.site],
            n_tokens=model.config.max_tokens,
            prompt=prompt,
            frames=[run.frames for run in runs],
        )
        if "step" not in self.values:
            return means
        # Step 0 is at the prompt's last token.
        axis = SITES["decoder"][self.site].index("pos")
        steps = jax.lax.slice_in_dim(getattr(means, self.site), prompt - 1, None, axis=axis)
        return DecoderActivations(**{self.site: steps})


def _wrong(text: str, why: str) -> InputError:
    return InputError(f"The edit {text!r} cannot be read: {why}.")


def _merged(windows: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The same positions in as few windows as there can be, each edited once."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(windows):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(stop, merged[-1][1])
        else:
            merged.append((start, stop))
    return tuple(merged)


def _cells(
    text: str, stack: Stack, site: str, cells: str, model: Whisper
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Layers and heads, `(EVERY,)` for all of them."""
    if SITES[stack][site][0] != "layer":
        if cells:
            raise _wrong(text, f"{site} lies outside the layers: leave out @{cells}")
        return (EVERY,), (EVERY,)
    if not cells:
        raise _wrong(text, f"say in which layers: {stack}.{site}@3, @0-3 or @*")
    layers, _, heads = cells.partition(".")
    if cells.endswith("."):
        raise _wrong(text, "the heads are missing after the dot")
    if heads and head_axis(site) is None:
        raise _wrong(text, f"{site} has no heads: leave out .{heads}")
    config = model.config
    return (
        _numbers(text, "layers", layers, config.layers(stack)),
        _numbers(text, "heads", heads, config.heads(stack)),
    )


def _numbers(text: str, what: str, numbers: str, size: int) -> tuple[int, ...]:
    if numbers == "*" or (what == "heads" and not numbers):
        return (EVERY,)
    try:
        indices = parse_indices(what, numbers) or []
    except InputError as error:
        raise _wrong(text, str(error).rstrip(".")) from None
    outside = [index for index in indices if not -size <= index < size]
    if outside:
        raise _wrong(text, f"there is no {what[:-1]} {outside[0]} among {size}")
    chosen = tuple(index % size for index in indices)
    if len(set(chosen)) < len(chosen):
        raise _wrong(text, f"{what} {numbers} name one of them twice")
    return chosen


def _values(text: str, kind: str, stack: Stack, options: Sequence[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for key, _, value in (option.partition("=") for option in _rejoined(options)):
        if key not in _KEYS[kind] | _COMMON:
            known = ", ".join(sorted(_KEYS[kind] | _COMMON))
            raise _wrong(text, f"{kind} takes no {key!r} but {known}")
        if not value or key in values:
            raise _wrong(text, f"{key} needs one value, as in {key}=...")
        values[key] = value
    missing = _KEYS[kind] - _OPTIONAL - set(values)
    if missing:
        raise _wrong(text, f"{kind} needs {min(missing)}=...")
    if "step" in values and (stack == "encoder" or "pos" in values):
        raise _wrong(text, "step goes with the decoder, and without pos")
    return values


def _rejoined(options: Sequence[str]) -> list[str]:
    """Options whose values hold colons, as `pos=4:12` does, in one piece."""
    joined: list[str] = []
    for option in options:
        if joined and "=" not in option:
            joined[-1] += f":{option}"
        else:
            joined.append(option)
    return joined


def _load_vector(text: str, path: str) -> Float[Array, " d"]:
    try:
        vector = np.load(Path(path), allow_pickle=False)
    except (OSError, ValueError):
        raise _wrong(text, f"vector={path} is no .npy file") from None
    if vector.ndim != 1 or not np.issubdtype(vector.dtype, np.floating):
        raise _wrong(
            text, f"vector={path} holds {vector.dtype}{list(vector.shape)}, not one float vector"
        )
    return jnp.asarray(vector)
