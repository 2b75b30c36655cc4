"""What is counted of transcripts under interventions, of made-up ones."""

import hashlib

import jiwer
import numpy as np
import pytest
import xarray
from transformers.models.whisper.english_normalizer import (
    BasicTextNormalizer,
    EnglishTextNormalizer,
)

import jaxasr_interp as ji
from jaxasr_interp.ablation.result import AGAINST, OPERATIONS, UNITS, cell_of

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
        swept.generated,
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
    assert dataset.layer.attrs["note"].startswith("-1: all of the site; where site is empty")
    assert dataset.seed.values.tolist() == [0, 0, 0]
    for clip, found in zip(swept.clips, dataset.audio_sha256.values, strict=True):
        assert found == hashlib.sha256(clip.audio.tobytes()).hexdigest()
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
        ("zero:decoder.mlp_out@*", ("decoder", "mlp_out", -1, -1, 1.0)),
        ("zero:encoder.z@*.2", ("encoder", "z", -1, 2, 1.0)),
    ):
        cell = cell_of(ji.parse_edit(text, tiny))
        assert (cell.stack, cell.site, cell.layer, cell.head, cell.alpha) == expected
    for text in (
        "zero:decoder.mlp_out@0,1",
        "zero:decoder.embed",
        "scale:decoder.z@0.0:factor=2:step=0",
        "zero:encoder.mlp_out@0 + zero:decoder.mlp_out@0",
        "zero:decoder.mlp_out@0 + zero:decoder.mlp_out@1:step=0",
    ):
        assert cell_of(ji.parse_edit(text, tiny)) is None
    assert cell_of(ji.Intervention("unedited")) is None
