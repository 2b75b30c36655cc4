"""Edits as text, the same in Python and on the command line.

::

    KIND:STACK.SITE[@LAYERS[.HEADS]][:KEY=VALUE ...] [+ ...]

    zero:decoder.cross_attn_out@3
    zero:decoder.cross_z@4.7
    mix:encoder.resid_post@*:alpha=0.5:ref=noise
    scale:decoder.z@0-3.2,5:factor=0.5 + zero:decoder.mlp_out@5:step=0..3

`interventions.places` describes the place. These are the kinds, and the keys that they take:

==========  ====================================================================================
`zero`      `a -> 0`
`scale`     `a -> factor · a`; `factor`
`noise`     `a -> a + std · ε`; `std`, `seed` (0)
`add`       `a -> a + vector`; `vector`, a `.npy` file
`mix`       `a -> a_ref`, the activation of a reference run with the same tokens on the audio `ref`:
            `noise` (as loud as the clip), `silence` or an audio file; `seed` (0) of the noise
`mean`      `a -> mean of a`, over positions of the clips `ref`, audio files separated by commas
`knockout`  attention ignores `keys`: `4..12`, or times (`0.4s..0.9s`) where keys are frames; only
            at `pattern` and `cross_pattern`
==========  ====================================================================================

All kinds take `alpha`, the strength (1): `ã = (1 - α) a + α edit(a)`. All take `pos`, positions as
a sweep names them, though not by words: tokens of the decoder, prompt included, or frames and times
of the encoder. Decoder edits also take `step`, which counts from the first generated token:
`step=0` edits the position that predicts token 0.

Reading an edit never runs the model: a mean holds only the names of its clips until it is computed.
"""

import dataclasses
from collections.abc import Sequence

from jaxasr_interp.errors import InputError
from jaxasr_interp.interventions.intervention import Intervention
from jaxasr_interp.interventions.kind_text import KINDS, KindText, parse_kind, windows_in_any_run
from jaxasr_interp.interventions.places import Place, parse_place
from jaxasr_interp.interventions.where import END, EVERY, At, chain
from jaxasr_interp.model.config import WhisperConfig
from jaxasr_interp.model.edits import Edit, EditLike, as_edit, edit_of
from jaxasr_interp.model.sites import Stack, counts_frames
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.speech.positions import Window

_WHERE = ("alpha", "pos", "step")
"""The keys that every kind takes: how strongly and at which positions it acts."""


def parse_edit(text: str | Sequence[str], model: Whisper) -> Intervention:
    """Read an edit from its text.

    Args:
        text: text as above; several texts are applied one after another.
        model: the model, which gives the layers, heads and sizes.

    Returns:
        The intervention.

    Raises:
        InputError: a part cannot be read, names what the model lacks, or needs a reference other
            than that of an earlier part.
    """
    return read_intervention(text, model.config)


def read_intervention(text: str | Sequence[str], config: WhisperConfig) -> Intervention:
    """Do what `parse_edit` does for a model of these sizes."""
    texts = [text] if isinstance(text, str) else list(text)
    parts = [_read(part, config) for one in texts for part in one.split(" + ")]
    references = {(part.kind.reference, part.kind.seed) for part in parts if part.kind.reference}
    if len(references) > 1:
        raise InputError(
            f"The edit {' + '.join(texts)!r} has two references: one run has one `ref` and `seed`."
        )
    reference, seed = next(iter(references), (None, 0))

    def those(stack: Stack, from_first_step: bool) -> Edit:
        return chain(
            [
                part.edit
                for part in parts
                if part.place.stack == stack and part.from_first_step == from_first_step
            ]
        )

    return Intervention(
        text=" + ".join(texts),
        encoder=those("encoder", False),
        decoder=those("decoder", False),
        steps=those("decoder", True),
        reference=reference,
        seed=seed,
    )


@edit_of.register
def _(edit: str, stack: Stack, config: WhisperConfig, prompt: int | None = None) -> Edit:
    """Read the text of an edit of one stack."""
    return edit_of(read_intervention(edit, config), stack, config, prompt)


def as_intervention(edit: EditLike | Sequence[str], model: Whisper) -> Intervention:
    """Return an intervention unchanged, and make one of the text of an edit, or of an edit.

    An edit and a plain function act on the decoder, as in `generate`, and are named by what they
    are.

    Raises:
        InputError: `edit` is none of these, or the text cannot be read.
    """
    if isinstance(edit, Intervention):
        return edit
    if isinstance(edit, Sequence):
        return parse_edit(edit, model)
    name = getattr(edit, "__name__", None) or " ".join(repr(edit).split())
    return Intervention(name, decoder=as_edit(edit))


@dataclasses.dataclass(frozen=True)
class _Part:
    """One part of an edit, after its text was read.

    Attributes:
        kind: kind of the edit.
        place: where the edit acts.
        from_first_step: whether its positions are steps of generation.
        edit: the edit that kind and place make.
    """

    kind: KindText
    place: Place
    from_first_step: bool
    edit: Edit


def _read(text: str, config: WhisperConfig) -> _Part:
    text = text.strip()
    name, *rest = text.split(":")
    try:
        if name in KINDS and (not rest or "." not in rest[0]):
            raise InputError("After the kind comes STACK.SITE, such as decoder.mlp_out@3.")
        kind = parse_kind(":".join([name, *rest[1:]]), also=_WHERE)
        place = parse_place(rest[0], layers_needed=True)
        from_first_step = "step" in kind.values
        if from_first_step and (place.stack == "encoder" or "pos" in kind.values):
            raise InputError("A step goes with the decoder, and without pos.")
        return _Part(kind, place, from_first_step, _edit(kind, place, config))
    except InputError as error:
        raise InputError(f"The edit {text!r} cannot be read: {error}") from None


def _edit(kind: KindText, place: Place, config: WhisperConfig) -> Edit:
    """Make the edit of all cells of a place."""
    from_first_step = "step" in kind.values
    what = kind.edit(place.stack, place.site, config, from_first_step=from_first_step)
    alpha = kind.number("alpha") if "alpha" in kind.values else 1.0
    if place.heads == "each":
        raise InputError("One edit takes heads together: write * or numbers, not each.")
    layers = _inside("layers", place.layers, config.layers(place.stack))
    heads = _inside("heads", place.heads, config.heads(place.stack))
    return chain(
        [
            At(what, layer, start, stop, head, alpha, place.site, place.stack)
            for layer in layers
            for head in heads
            for start, stop in _windows(kind, place, config)
        ]
    )


def _windows(kind: KindText, place: Place, config: WhisperConfig) -> tuple[Window, ...]:
    timed = counts_frames(place.stack, place.site)
    key = next((key for key in ("step", "pos") if key in kind.values), None)
    if key is None:
        return ((0, END),)
    if key == "step" and timed:
        raise InputError(f"A step counts tokens and {place.site} counts frames.")
    return windows_in_any_run(key, kind.values[key], config, timed=timed)


def _inside(what: str, indices: tuple[int, ...] | None, size: int) -> tuple[int, ...]:
    """Count layers or heads from the first; return `(EVERY,)` if the text names all of them."""
    if indices is None:
        return (EVERY,)
    outside = [index for index in indices if not -size <= index < size]
    if outside:
        raise InputError(f"There is no {what[:-1]} {outside[0]} among {size}.")
    chosen = tuple(index % size for index in indices)
    if len(set(chosen)) < len(chosen):
        raise InputError(f"The {what} {','.join(map(str, indices))} name one of them twice.")
    return chosen
