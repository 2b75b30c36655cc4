"""Which clips are extracted from: tables and datasets, chosen clips, noise at stated ratios."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

import jaxasr_interp as ji
from helpers.files import sound, write_table
from jaxasr_interp.speech.clips import choose, find_clips, with_noise

SITES = ["encoder.resid_post:mean"]


@pytest.fixture
def rows(tmp_path):
    rows = []
    for i in range(4):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, sound(i, 500 + 50 * i), 16000)
        rows.append({"path": str(path), "text": "ab", "lang": "en", "speaker": str(i % 2)})
    return rows


def test_tables_and_datasets_say_the_same(tiny32, rows, tmp_path):
    decoded = []

    class Dataset:
        """A Hugging Face dataset as far as it matters: audio is decoded when a row is asked for."""

        column_names = ("text", "lang", "speaker", "tags", "audio")

        def __iter__(self):
            return map(self.__getitem__, range(len(rows)))

        def __getitem__(self, i):
            decoded.append(i)
            samples, rate = soundfile.read(rows[i]["path"])
            return {**labels(rows[i]), "audio": {"array": samples, "sampling_rate": rate}}

        def remove_columns(self, name):
            assert name == "audio"
            return [labels(row) for row in rows]

    def labels(row):
        return {"text": row["text"], "lang": "en", "speaker": int(row["speaker"]), "tags": [1]}

    lines = [{**row, "speaker": int(row["speaker"]), "tags": [1]} for row in rows]
    jsonl = tmp_path / "clips.jsonl"
    jsonl.write_text("\n".join(map(json.dumps, lines)))
    encoded = [
        {**labels(row), "audio": {"bytes": Path(row["path"]).read_bytes(), "path": None}}
        for row in rows
    ]
    sources = {
        "tsv": write_table(tmp_path / "some.tsv", rows),
        "jsonl": jsonl,
        "dataset": Dataset(),
        "generator": iter(encoded),
        "paths": [{**labels(row), "audio": row["path"]} for row in rows],
    }
    stored = {
        name: ji.open_activations(
            ji.extract(
                tiny32,
                clips,
                tmp_path / f"{name}.zarr",
                sites=SITES,
                options=ji.ExtractOptions(batch_size=2, random_seed=None),
            ).path
        )
        for name, clips in sources.items()
    }
    assert decoded == [0, 1, 2, 3]
    for name, store in stored.items():
        for variable in ("encoder.resid_post.mean", "mel", "speaker", "text", "frames"):
            np.testing.assert_array_equal(
                store[variable].values, stored["tsv"][variable].values, err_msg=name
            )
        assert "tags" not in store
    assert stored["dataset"].path.values.tolist() == ["row 0", "row 1", "row 2", "row 3"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("path\ttext\n", "no rows"),
        ("name\ttext\na.wav\tx\n", "no column 'path'"),
        ("path\ttext\na.wav\tx\ty\n", "more cells than columns"),
        ("path\ttext\tframes\na.wav\tx\ty\n", "'frames' cannot be stored"),
        ("path\ttext\tof.speaker\na.wav\tx\ty\n", "'of.speaker' cannot be stored"),
    ],
)
def test_tables_that_cannot_be_used(tiny32, tmp_path, content, sentence):
    (tmp_path / "clips.tsv").write_text(content)
    with pytest.raises(ji.InputError, match=sentence):
        ji.extract(tiny32, tmp_path / "clips.tsv", tmp_path / "a.zarr", sites=SITES)
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize(
    "audio",
    [
        None,
        3,
        {"array": [0.0], "sampling_rate": None},
        {"array": [0.0], "sampling_rate": "fast"},
        {"array": [0.0], "sampling_rate": 16_000.5},
        {"array": [0.0], "sampling_rate": float("inf")},
        {"array": [[0.0], [0.0, 1.0]], "sampling_rate": 16_000},
        {"array": None, "bytes": None, "path": None},
    ],
)
def test_rows_that_hold_no_audio_are_named(audio):
    clips = find_clips([{"text": "ab", "audio": audio}])
    with pytest.raises(
        ji.InputError, match=r"The audio of row 0 is .*: expected a path, or an array"
    ):
        clips.read(0)


def test_rows_of_lists_and_of_any_bytes_are_read(rows):
    content = Path(rows[0]["path"]).read_bytes()
    expected = find_clips(rows).read(0)
    listed = {"array": expected.tolist(), "sampling_rate": 16_000.0}
    for audio in (listed, {"bytes": bytearray(content)}, {"bytes": memoryview(content)}):
        np.testing.assert_array_equal(find_clips([{"audio": audio}]).read(0), expected)


def test_noise_is_as_loud_as_asked_for(rows):
    clean, clips = find_clips(rows), with_noise(find_clips(rows), [10, -5])
    assert [row["snr"] for row in clips.rows[:4]] == ["clean", "10", "-5", "clean"]
    noises = []
    for i in range(len(rows)):
        x = clean.read(i)
        np.testing.assert_array_equal(clips.read(3 * i), x)
        for j, snr in ((1, 10), (2, -5)):
            noise = clips.read(3 * i + j).astype(np.float64) - x
            measured = 10 * np.log10(np.square(x, dtype=np.float64).sum() / np.square(noise).sum())
            assert abs(measured - snr) < 1e-3
            noises.append(noise[:400] / noise.std())
    correlations = np.abs(np.corrcoef(noises))
    same = np.kron(np.eye(len(rows)), np.ones((2, 2))) > 0
    assert correlations[same].min() > 0.98
    assert correlations[~same].max() < 0.3
    np.testing.assert_array_equal(with_noise(clean, [0]).read(3), with_noise(clean, [0]).read(3))
    for snrs in ([3, 3], [float("nan")]):
        with pytest.raises(ji.InputError, match="finite"):
            with_noise(clean, snrs)


def test_clips_are_chosen_by_their_columns(rows):
    clips = find_clips([{**row, "kind": kind} for row, kind in zip(rows, "abca", strict=True)])
    assert [row["path"] for row in choose(clips, {"kind": ["a", "c"], "speaker": ["0"]}).rows] == [
        rows[0]["path"],
        rows[2]["path"],
    ]
    chosen = choose(clips, {"kind": ["a"]})
    np.testing.assert_array_equal(chosen.read(1), clips.read(3))
    assert len(choose(clips, {"kind": ["a"]}, 1).rows) == 1
    with pytest.raises(ji.InputError, match="no column 'sort'"):
        choose(clips, {"sort": ["a"]})
    with pytest.raises(ji.InputError, match="No clip has kind=z"):
        choose(clips, {"kind": ["z"]})
