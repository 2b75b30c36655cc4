"""The command `lens`: the prediction of each layer, and what every component adds to a logit."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from jaxasr_interp.checkpoint.load import load_model
from jaxasr_interp.cli.options import (
    CsvOption,
    DtypeOption,
    JsonOption,
    LanguageOption,
    ModelOption,
    OverwriteOption,
)
from jaxasr_interp.cli.output import console, print_json, write_csv, write_picture
from jaxasr_interp.errors import InputError
from jaxasr_interp.generation.utterances import make_utterance
from jaxasr_interp.generation.word_times import align_words, following_heads, mean_pattern
from jaxasr_interp.lens.direct import DIRECT_SITES, direct_logit_attribution
from jaxasr_interp.lens.logit import check_lens_site, logit_lens
from jaxasr_interp.lens.tuned import tuned_lens
from jaxasr_interp.lens.tuned_checkpoints import load_tuned_lens
from jaxasr_interp.model.run import DecoderRun, EncodedUtterance, decode, encode_utterance
from jaxasr_interp.model.whisper import Whisper, require_tokenizer
from jaxasr_interp.report.plots import (
    axis_labels,
    plot_attention,
    plot_attribution,
    plot_attribution_heads,
    plot_lens,
    plot_lens_heads,
)
from jaxasr_interp.report.tables import attribution_table, lens_heads_table, lens_table
from jaxasr_interp.runtime.frames import to_dataframe
from jaxasr_interp.runtime.store import file_provenance, reserve, save_dataset, together
from jaxasr_interp.speech.audio import load_audio

if TYPE_CHECKING:
    import matplotlib.figure


def lens(
    file: Annotated[str, typer.Argument(help="An audio file of up to 30 s.")],
    model: ModelOption = "tiny.en",
    dtype: DtypeOption = None,
    language: LanguageOption = None,
    text: Annotated[
        str | None, typer.Option(help="Read this transcript instead of the model's own.")
    ] = None,
    site: Annotated[
        str,
        typer.Option(help="Site to read: residual stream, or output of a sublayer or of heads."),
    ] = "resid_post",
    attribution: Annotated[
        bool,
        typer.Option(
            "--attribution", help="Also decompose the next token's logit by component and head."
        ),
    ] = False,
    tuned: Annotated[
        Path | None,
        typer.Option(help="Read through the tuned lens in this folder, from tuned-lens."),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Most probable tokens to keep.")] = 5,
    out: Annotated[Path, typer.Option(help="Folder for stores and pictures.")] = Path("runs/lens"),
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Show the next token that every decoder layer predicts, by the logit lens or a tuned lens."""
    check_lens_site(site)
    if tuned is not None and site != "resid_post":
        raise InputError(f"A tuned lens reads resid_post, not {site}: leave out one of the two.")
    translators = None if tuned is None else load_tuned_lens(tuned)
    wanted = ["lens", *(["attribution"] if attribution else [])]
    for name in wanted:
        reserve(out / f"{name}.zarr", overwrite)
    whisper = load_model(model, dtype)
    if translators is not None:
        translators.check_model(whisper)
    tokenizer = require_tokenizer(whisper)
    sites = {site, "resid_post", "cross_pattern", *(DIRECT_SITES if attribution else ())}
    read = _read(whisper, file, sites, language=language, text=text)
    name = Path(model).name
    if translators is None:
        result = logit_lens(whisper, read.run, site=site, top_k=top_k)
    else:
        result = tuned_lens(whisper, read.run, translators, top_k=top_k)
    origin = file_provenance(clip=file) | {
        "tokens": read.tokens,
        "prompt": read.utterance.prompt,
        "tuned_lens": "" if tuned is None else str(tuned),
    }
    dataset = result.to_dataset().assign_coords(token=("pos", read.labels)).assign_attrs(origin)
    with together(out):
        save_dataset(dataset, out / "lens.zarr", whisper, overwrite=overwrite)
        if as_csv:
            write_csv(to_dataframe(dataset, result.axes, ("top",)), out / "lens.zarr")
        kind = "logit lens" if translators is None else "tuned lens"
        title = f"{kind} of {name}, {site}: {Path(file).name}"
        if "head" in result.axes:
            figure = plot_lens_heads(result, title, read.start)
            tables = [lens_heads_table(result, read.start)]
        else:
            figure = plot_lens(result, tokenizer, read.labels, title)
            tables = [lens_table(result, tokenizer, read.tokens)]
        pictures = write_picture(figure, out, "lens")
        pictures += write_picture(
            _plot_attention(whisper, read, name, Path(file).name), out, "attention"
        )
        printed = dataset.to_dict()["data_vars"] | {"tokens": read.tokens}
        if attribution:
            parts = direct_logit_attribution(whisper, read.run, read.following)
            following = axis_labels(tokenizer, read.following)
            coordinates = {"token": ("pos", read.labels), "target": ("pos", following)}
            dataset = parts.to_dataset().assign_coords(coordinates).assign_attrs(origin)
            save_dataset(dataset, out / "attribution.zarr", whisper, overwrite=overwrite)
            if as_csv:
                write_csv(to_dataframe(dataset, ("component", "pos")), out / "attribution.zarr")
            title = f"direct logit attribution of {name}: {Path(file).name}"
            pictures += write_picture(plot_attribution(parts, following, title), out, "attribution")
            heads = plot_attribution_heads(parts, title, read.start)
            pictures += write_picture(heads, out, "attribution_heads")
            tables.append(attribution_table(parts, read.start))
            printed["attribution"] = dataset.to_dict()
    if as_json:
        print_json(printed)
        return
    for table in tables:
        console.print(table)
    written = [*(out / f"{name}.zarr" for name in wanted), *pictures]
    print(f"wrote {', '.join(map(str, written[:-1]))} and {written[-1]}")


@dataclasses.dataclass(frozen=True)
class _Read:
    """A clip with its transcript, and the decoder's run on them.

    Attributes:
        clip: name of the file.
        utterance: the clip with prompt and transcript.
        run: the decoder's run.
        labels: text of every token.
        following: the token after each token; end-of-text after the last one.
    """

    clip: str
    utterance: EncodedUtterance
    run: DecoderRun
    labels: list[str]
    following: list[int]

    @property
    def tokens(self) -> list[int]:
        """The tokens of prompt and transcript."""
        return np.asarray(self.utterance.tokens).tolist()

    @property
    def start(self) -> int:
        """The position that predicts the transcript's first token."""
        return self.utterance.prompt - 1


def _read(
    model: Whisper, file: str, sites: set[str], *, language: str | None, text: str | None
) -> _Read:
    """Encode a clip once, and run the decoder on its transcript."""
    tokenizer = require_tokenizer(model)
    utterance = make_utterance(model, load_audio(file), text=text, language=language, name=file)
    states = encode_utterance(model, utterance).states
    tokens = np.asarray(utterance.tokens).tolist()
    run = decode(model, tokens, states, sites=sites)
    following = [*tokens[1:], tokenizer.end_of_text]
    return _Read(Path(file).name, utterance, run, axis_labels(tokenizer, tokens), following)


def _plot_attention(
    model: Whisper, read: _Read, name: str, clip: str
) -> "matplotlib.figure.Figure":
    heads = following_heads(model)
    words = align_words(model, read.utterance)
    which = f"mean of the {len(heads)} heads that follow the audio"
    title = f"where {name} listens in {read.clip}: {which}"
    pattern = mean_pattern(read.run, heads)[:, : read.utterance.frames]
    return plot_attention(pattern, read.labels, words, title)
