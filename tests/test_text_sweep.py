"""Sweeps on text: every cell against that clip alone under that edit, and what is counted."""

import dataclasses

import jax
import jax.numpy as jnp
import jiwer
import numpy as np
import pytest
import xarray
from test_edit_grammar import brief_clips, hear_briefly, louder
from transformers.models.whisper.english_normalizer import (
    BasicTextNormalizer,
    EnglishTextNormalizer,
)

import jaxasr_interp as ji
from jaxasr_interp import text_sweep
from jaxasr_interp.edits import needs_source, with_source
from jaxasr_interp.references import noise_like
from jaxasr_interp.text_result import AGAINST, OPERATIONS, UNITS, cell_of

CHOICE = ji.Choice(max_new_tokens=6)
LIGHT = [
    "zero:decoder.mlp_out@0",
    "zero:decoder.mlp_out@2:alpha=0.5",
    "scale:decoder.cross_z@1.0:factor=-3",
    "zero:decoder.mlp_out@1:step=2..4",
    "zero:decoder.embed:pos=5..7",
]
"""Single components that are edited row by row: they are made alike."""
HEAVY = [
    "zero:decoder.mlp_out@0 + zero:decoder.cross_attn_out@2",
    "zero:decoder.mlp_out@1 + zero:decoder.cross_attn_out@0",
    "scale:decoder.cross_v@1:factor=-2",
    "mix:decoder.resid_post@1:ref=noise",
    "mix:decoder.resid_post@0:ref=noise:alpha=0.5",
    "mix:decoder.resid_post@0:ref=noise:seed=1",
    "mix:decoder.resid_post@1:ref=silence",
    "zero:encoder.mlp_out@0",
    "zero:encoder.mlp_out@1",
    "zero:encoder.mlp_out@0:alpha=0.5 + zero:decoder.mlp_out@1",
    "mix:encoder.resid_post@0:ref=noise",
    "mix:encoder.resid_post@0:ref=noise + mix:decoder.resid_post@2:alpha=0.5:ref=noise",
]


@pytest.fixture
def model(tiny):
    """English and German change places, so that German is what it detects."""
    embed, pair = tiny.decoder.embed[...], np.array([32, 33])
    tiny.decoder.embed[...] = embed.at[pair].set(embed[pair[::-1]])
    return louder(tiny)


@pytest.fixture
def hears(monkeypatch):
    return hear_briefly(monkeypatch)


@pytest.fixture
def clips():
    tone, noise = brief_clips()
    return [
        ji.Clip("tone", tone, "a b c"),
        ji.Clip("noise", noise, None, "en"),
        ji.Clip("short", noise[:2000] - tone[:2000], "", "german"),
    ]


def write_alone(model, hears, clip, text):
    """One clip under one edit: encode, then generate."""
    edit = ji.parse_edit(text, model) if text else ji.Intervention("")
    mel, encoder, reference = hears(clip.audio, 8), edit.encoder, None
    language = clip.language or next(iter(ji.detect_language(model, ji.encode(model, mel).states)))
    prompt = model.tokenizer.prompt(language)
    decoder = edit.decoder_edit(len(prompt))
    if edit.reference is not None:
        silent = np.zeros_like(clip.audio)
        heard = silent if edit.reference == "silence" else noise_like(clip.audio, edit.seed)
        beside = ji.encode(model, hears(heard, 8), sites="all")
        encoder = with_source(encoder, beside.acts)
        reference = beside.states if needs_source(decoder) else None
    states = ji.encode(model, mel, edit=encoder).states
    return ji.generate(
        model, states, prompt=prompt, edit=decoder, reference=reference, max_new_tokens=6
    )


def expect_same(found, expected, label):
    assert found.prompt == expected.prompt, label
    assert found.tokens == expected.tokens, label
    assert (found.text, found.finished) == (expected.text, expected.finished), label
    np.testing.assert_allclose(found.log_probs, expected.log_probs, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(found.no_speech_prob, expected.no_speech_prob, rtol=1e-9)


@pytest.mark.parametrize(
    "edits", [LIGHT, pytest.param(HEAVY, marks=pytest.mark.slow)], ids=["light", "heavy"]
)
def test_every_cell_is_that_clip_alone_under_that_edit(model, hears, clips, edits):
    done = []
    swept = ji.ablation_sweep(model, clips, edits, choice=CHOICE, on_progress=done.append)
    assert done == [(i + 1) * (1 + len(edits)) for i in range(3)]
    assert [one.text for one in swept.interventions] == ["unedited", *edits]
    assert swept.clips == tuple(clips)
    assert swept.languages == ("de", "en", "de")
    for text, row in zip(["", *edits], swept.written, strict=True):
        for clip, one in zip(clips, row, strict=True):
            expect_same(one, write_alone(model, hears, clip, text), (text, clip.name))
        if text:
            moved = [
                np.abs(np.subtract(a.log_probs, b.log_probs)).max() if a.tokens == b.tokens else 1
                for a, b in zip(row, swept.written[0], strict=True)
            ]
            assert min(moved) > 1e-4, text


def test_on_an_accelerator_clips_share_a_batch(model, hears, clips, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    done, edits = [], [LIGHT[2], HEAVY[0], *HEAVY[3:5], *HEAVY[7:9]]
    swept = ji.ablation_sweep(model, clips, edits, choice=CHOICE, on_progress=done.append)
    assert done == [3 * (1 + len(edits))]
    for text, row in zip(["", *edits], swept.written, strict=True):
        for clip, one in zip(clips, row, strict=True):
            expect_same(one, write_alone(model, hears, clip, text), (text, clip.name))


def test_a_reference_is_heard_once_for_each_clip(model, hears, clips, monkeypatch):
    heard, hear = [], text_sweep.hear_reference

    def counted(model, clip, reference, seed, sites):
        heard.append((len(clip), reference, seed, frozenset(sites)))
        return hear(model, clip, reference, seed, sites)

    monkeypatch.setattr(text_sweep, "hear_reference", counted)
    edits = [f"mix:encoder.resid_post@{layer}:ref=noise" for layer in range(2)]
    edits += ["mix:encoder.resid_post@0:ref=noise:alpha=0.5", "mix:decoder.resid_post@1:ref=noise"]
    ji.ablation_sweep(model, clips[1:], edits, choice=ji.Choice(max_new_tokens=1))
    assert len(heard) == len(set(heard)) == 4


class CutOffError(Exception):
    pass


def cut_off(after):
    """Called with what is done; ends the work there."""

    def on_progress(done):
        if done == after:
            raise CutOffError

    return on_progress


@pytest.fixture
def generated(monkeypatch):
    """How many clips each call of `generate_rows` writes about."""
    calls, rows = [], text_sweep.generate_rows

    def counted(model, states, *arguments, **options):
        calls.append(len(states))
        return rows(model, states, *arguments, **options)

    monkeypatch.setattr(text_sweep, "generate_rows", counted)
    return calls


def test_a_sweep_goes_on_behind_the_last_whole_clip(model, hears, clips, tmp_path, generated):
    edits, partial = LIGHT[:2], tmp_path / "new" / "partial.jsonl"
    whole = ji.ablation_sweep(model, clips, edits, choice=CHOICE)
    assert generated == [1, 1, 1]
    options = {"choice": CHOICE, "resume": partial}
    with pytest.raises(CutOffError):
        ji.ablation_sweep(model, clips, edits, on_progress=cut_off(6), **options)
    lines = partial.read_text().splitlines(keepends=True)
    assert len(lines) == 3
    partial.write_text("".join(lines)[:-40])
    generated.clear()
    done = []
    resumed = ji.ablation_sweep(model, clips, edits, on_progress=done.append, **options)
    assert generated == [1, 1]
    assert done == [6, 9]
    assert resumed.written == whole.written
    assert resumed.languages == whole.languages
    np.testing.assert_array_equal(resumed.errors, whole.errors)
    assert len(partial.read_text().splitlines()) == 4
    # All is known: nothing is computed. A clip is known by its samples, not by its name alone.
    generated.clear()
    again = ji.ablation_sweep(model, clips[::-1], edits, **options)
    assert again.written == tuple(row[::-1] for row in whole.written)
    assert generated == []
    other = [ji.Clip("tone", clips[1].audio), ji.Clip("noise", clips[1].audio, "", "de")]
    ji.ablation_sweep(model, other, edits, **options)
    assert generated == [1, 1]


@pytest.mark.parametrize(
    "change",
    [
        {"interventions": LIGHT[1:3]},
        {"interventions": LIGHT[:1]},
        {"choice": ji.Choice(max_new_tokens=5)},
        {"choice": ji.Choice(suppress=False, max_new_tokens=6)},
        {"resume": "not a sweep\n"},
        {"resume": ""},
    ],
)
def test_what_another_sweep_has_kept_is_refused(model, hears, clips, tmp_path, change, monkeypatch):
    options = {"interventions": LIGHT[:2], "choice": CHOICE, "resume": tmp_path / "partial.jsonl"}
    with pytest.raises(CutOffError):
        ji.ablation_sweep(model, clips, on_progress=cut_off(3), **options)
    if "resume" in change:
        other = tmp_path / "other.jsonl"
        other.write_text(change["resume"])
        change = {"resume": other}
    kept = options["resume"].read_bytes()
    with pytest.raises(ji.InputError, match=r"jsonl is of another sweep: remove it"):
        ji.ablation_sweep(model, clips, **(options | change))
    assert options["resume"].read_bytes() == kept


def test_what_is_kept_under_another_vector_is_refused(model, hears, clips, tmp_path):
    options = {"choice": CHOICE, "resume": tmp_path / "partial.jsonl"}
    edits = [f"add:decoder.mlp_out@1:vector={tmp_path}/v.npy"]
    np.save(tmp_path / "v.npy", np.ones(16))
    whole = ji.ablation_sweep(model, clips[:1], edits, **options)
    np.save(tmp_path / "v.npy", np.full(16, 2.0))
    with pytest.raises(ji.InputError, match="is of another sweep"):
        ji.ablation_sweep(model, clips[:1], edits, **options)
    np.save(tmp_path / "v.npy", np.ones(16))
    assert ji.ablation_sweep(model, clips[:1], edits, **options).written == whole.written
    moved = dataclasses.replace(
        ji.parse_edit(edits[0], model), decoder=ji.At(ji.Add(jnp.ones(16)), 1, site="resid_post")
    )
    with pytest.raises(ji.InputError, match="is of another sweep"):
        ji.ablation_sweep(model, clips[:1], [moved], **options)
    plain = ji.Intervention("mine", decoder=lambda site, layer, value: value)
    with pytest.raises(ji.InputError, match="'mine' is a plain function"):
        ji.ablation_sweep(model, clips[:1], [plain], **options)


def test_bad_sweeps_are_named(model, hears, clips):
    a, b = clips[:2]
    for arguments, message in (
        (([a, b, a], LIGHT), "Two clips have the same name: 'tone'"),
        (([a], ["zero:decoder.z@1", "zero:decoder.z@1"]), "Two edits .* 'zero:decoder.z@1'"),
        (([], LIGHT), "at least one clip and one edit"),
        (([a], []), "at least one clip and one edit"),
        (([ji.Clip("long", np.zeros(31 * 16_000, np.float32))], LIGHT), "long is longer than 30 s"),
        (([a], ["zero:decoder.z@9"]), "no layer 9"),
    ):
        with pytest.raises(ji.InputError, match=message):
            ji.ablation_sweep(model, *arguments)


def test_every_component_has_an_edit(model):
    def texts(*arguments, **options):
        return [one.text for one in ji.component_edits(model, *arguments, **options)]

    sublayers = [f"zero:decoder.{s}@" for s in ("attn_out", "cross_attn_out", "mlp_out")]
    heads = [f"zero:decoder.{s}@" for s in ("z", "cross_z")]
    assert texts() == [
        *(f"{place}{layer}" for place in sublayers for layer in range(3)),
        *(f"{place}{layer}.{head}" for place in heads for layer in range(3) for head in range(2)),
    ]
    assert {text.split("@")[0] for text in texts(stack="encoder")} == {
        f"zero:encoder.{site}" for site in ("attn_out", "mlp_out", "z")
    }
    options = {"sites": ["z", "mlp_out"], "layers": [1], "heads": [0, 3], "alphas": [0.5, 1.0]}
    assert texts("mix:ref=noise", stack="encoder", **options) == [
        "mix:encoder.z@1.0:ref=noise:alpha=0.5",
        "mix:encoder.z@1.3:ref=noise:alpha=0.5",
        "mix:encoder.mlp_out@1:ref=noise:alpha=0.5",
        "mix:encoder.z@1.0:ref=noise",
        "mix:encoder.z@1.3:ref=noise",
        "mix:encoder.mlp_out@1:ref=noise",
    ]
    assert texts(sites=["z", "attn_out"], layers=[0, 2], heads="all") == [
        "zero:decoder.z@0",
        "zero:decoder.z@2",
        "zero:decoder.attn_out@0",
        "zero:decoder.attn_out@2",
    ]
    with pytest.raises(ji.InputError, match="no site 'nose'"):
        texts(sites=["nose"])
    edit = ji.component_edits(model, sites=["z"], layers=[2], heads=[1], alphas=[0.25])[0].decoder
    assert (edit.site, edit.layer, edit.head, edit.alpha) == ("z", 2, 1, 0.25)


# What is counted, of made-up transcripts.

TEXTS = {
    # (said, language): unedited, edited, edited otherwise.
    ("The cat sat on the mat.", "en"): ("the cat sat on mat", "The Cat sat on the mat!", "a a cat"),
    (None, "en"): ("Hello there.", "Hello.", "Hello, hello there, you."),
    ("", "en"): ("Thank you.", "", "(music)"),
    ("Zwei Hunde, drei Katzen", "de"): ("zwei Hunde drei", "zwei drei drei Katzen", ""),
    ("感谢观看", "zh"): ("感谢观看", "感观看", "感谢" * 12),
    ("No loop here", "en"): ("", "no loop here", "no loop no loop no loop no loop no loop"),
}


def generated_text(text, language):
    return ji.Generated(
        prompt=(31, 32 if language == "en" else 33, 35, 39),
        tokens=tuple(range(len(text) % 5)),
        log_probs=(-0.5,) * (len(text) % 5 + 1),
        finished=len(text) != 3,
        no_speech_prob=len(text) / 100,
        text=" " + text,
    )


@pytest.fixture(scope="module")
def swept():
    silence = np.zeros(100, np.float32)
    head = ji.At(ji.Zero(), 1, head=0, alpha=0.5, site="z")
    return ji.TextSweep(
        (
            ji.Intervention("unedited"),
            ji.Intervention("head", decoder=head),
            ji.Intervention("both", encoder=ji.At(ji.Zero(), 0, site="mlp_out"), decoder=head),
        ),
        tuple(ji.Clip(f"clip {i}", silence, said) for i, (said, _) in enumerate(TEXTS)),
        tuple(language for _, language in TEXTS),
        tuple(
            tuple(generated_text(row[i], language) for (_, language), row in TEXTS.items())
            for i in range(3)
        ),
    )


def normal(text, language):
    normalizer = (
        EnglishTextNormalizer({})
        if language == "en"
        else BasicTextNormalizer(split_letters=language == "zh")
    )
    return normalizer(text).strip()


def test_errors_are_those_of_jiwer(swept):
    assert swept.errors.shape == (3, 6, 2, 2, 4)
    for j, ((said, language), row) in enumerate(TEXTS.items()):
        for i, text in enumerate(row):
            for k, right in enumerate((said, row[0])):
                found = swept.errors[i, j, k]
                if right is None:
                    assert (found == -1).all()
                    continue
                texts = normal(right, language), normal(text, language)
                letters = [t.replace(" ", "") for t in texts] if language == "zh" else texts
                for counts, out in zip(
                    found,
                    (jiwer.process_words(*texts), jiwer.process_characters(*letters)),
                    strict=True,
                ):
                    assert counts.tolist() == [
                        out.hits,
                        out.substitutions,
                        out.deletions,
                        out.insertions,
                    ]


def test_rates_and_intervals_by_hand(swept):
    # Where something is known to be said: 6, 4, 4 and 3 words.
    assert swept.rate(0) == pytest.approx((1 + 1 + 0 + 3) / 17)
    assert swept.rate(1) == pytest.approx((0 + 1 + 1 + 0) / 17)
    # Against the unedited texts of 5, 2, 2, 3 and 4 words.
    assert swept.rate(0, "unedited") == 0
    assert swept.rate(1, "unedited") == pytest.approx((1 + 1 + 2 + 2 + 1) / 16)
    assert swept.rate(1, "transcript", "character") == pytest.approx(
        (0 + 5 + 1 + 0) / (len("the cat sat on the mat") + len("zwei hunde drei katzen") + 4 + 12)
    )
    wrong, length = np.array([0, 1, 1, 0]), np.array([6, 4, 4, 3])
    random = np.random.default_rng(0)
    rows = [random.integers(4, size=4) for _ in range(1000)]
    low, high = np.quantile([wrong[r].sum() / length[r].sum() for r in rows], [0.025, 0.975])
    interval = swept.interval(1)
    assert (interval.low, interval.estimate, interval.high) == (low, swept.rate(1), high)
    assert low < swept.rate(1) < high


def test_without_transcripts_there_is_no_rate(swept):
    unknown = ji.TextSweep(
        swept.interventions,
        tuple(ji.Clip(clip.name, clip.audio) for clip in swept.clips),
        swept.languages,
        swept.written,
    )
    assert np.isnan(unknown.rate(0))
    assert unknown.rate(1, "unedited") == swept.rate(1, "unedited")
    with pytest.raises(ji.InputError, match="no clips"):
        unknown.interval(1)


def test_the_dataset_has_named_axes_and_every_text(swept, tmp_path):
    dataset = swept.to_dataset()
    assert dict(dataset.sizes) == {
        "intervention": 3,
        "clip": 6,
        "against": 2,
        "unit": 2,
        "operation": 4,
    }
    assert dataset.errors.dims == ("intervention", "clip", "against", "unit", "operation")
    for name, names in (("against", AGAINST), ("unit", UNITS), ("operation", OPERATIONS)):
        assert tuple(dataset[name].values) == names
    assert dataset.intervention.values.tolist() == ["unedited", "head", "both"]
    assert dataset.transcript.values.tolist() == [said or "" for said, _ in TEXTS]
    for i, name in enumerate(dataset.intervention.values):
        texts = dataset.text.sel(intervention=name).values.tolist()
        assert texts == [row[i] for row in TEXTS.values()]
    assert dataset.loop.values.tolist() == [
        [False] * 6,
        [False] * 6,
        [False, False, False, False, True, True],
    ]
    words = [[5, 2, 2, 3, 4, 0], [6, 1, 0, 4, 3, 3], [3, 4, 0, 0, 24, 10]]
    np.testing.assert_array_equal(dataset.words, words)
    said = [[6, np.nan, np.nan, 4, 4, 3], [5, 2, 2, 3, 4, np.nan]]
    for against, length in zip(AGAINST, said, strict=True):
        ratio = np.array(words) / np.array(length)
        np.testing.assert_array_equal(dataset.length_ratio.sel(against=against), ratio)
    assert dataset.repeats.values[2].tolist() == [2, 2, 1, 0, 12, 5]
    np.testing.assert_array_equal(dataset.any_words, np.array(words) > 0)
    assert dataset.site.values.tolist() == ["", "z", ""]
    assert dataset.layer.values.tolist() == [-1, 1, -1]
    assert dataset["head"].values.tolist() == [-1, 0, -1]
    np.testing.assert_array_equal(dataset.alpha, [np.nan, 0.5, np.nan])
    assert dataset.mean_log_prob.values == pytest.approx(-0.5)
    assert dataset.no_speech_prob.values[0, 1] == pytest.approx(0.12)
    dataset.to_zarr(tmp_path / "texts.zarr", consolidated=False)
    stored = xarray.open_zarr(tmp_path / "texts.zarr", consolidated=False)
    xarray.testing.assert_identical(stored.load(), dataset)


def test_one_component_is_known_from_its_edit(tiny):
    for text, expected in (
        ("zero:encoder.mlp_out@1:alpha=0.5", ("encoder", "mlp_out", 1, -1, 0.5)),
        ("zero:decoder.cross_z@2.1", ("decoder", "cross_z", 2, 1, 1.0)),
    ):
        cell = cell_of(ji.parse_edit(text, tiny))
        assert (cell.stack, cell.site, cell.layer, cell.head, cell.alpha) == expected
    for text in (
        "zero:decoder.mlp_out@0,1",
        "zero:decoder.mlp_out@*",
        "zero:decoder.embed",
        "scale:decoder.z@0.0:factor=2:step=0",
        "zero:encoder.mlp_out@0 + zero:decoder.mlp_out@0",
        "zero:decoder.mlp_out@0 + zero:decoder.mlp_out@1:step=0",
    ):
        assert cell_of(ji.parse_edit(text, tiny)) is None
    assert cell_of(ji.Intervention("unedited")) is None
