"""Tables of clips: their forms, the names of their columns, and what is said of broken ones."""

import sys

import numpy as np
import pytest
import soundfile

import jaxasr_interp as ji
from helpers.files import sound
from jaxasr_interp.speech.clips import find_clips
from jaxasr_interp.speech.hub import is_dataset, is_id, local_or_id
from jaxasr_interp.speech.tables import read_manifest, read_table


def table(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    return path


def test_cells_of_a_csv_may_be_in_quotes(tmp_path):
    content = (
        'path,text, speaker\r\na.wav,"Hi, you", 1\r\n"b, c.wav","He said ""no""\nand left",2\r\n'
    )
    assert read_manifest(table(tmp_path, "clips.csv", content)) == [
        {"path": "a.wav", "text": "Hi, you", "speaker": "1"},
        {"path": "b, c.wav", "text": 'He said "no"\nand left', "speaker": "2"},
    ]


def test_quotes_of_a_tsv_are_text(tmp_path):
    (row,) = read_manifest(table(tmp_path, "clips.tsv", 'path\ttext\na.wav\t"Hi, you\n'))
    assert row == {"path": "a.wav", "text": '"Hi, you'}


@pytest.mark.parametrize("audio", ["path", "audio", "audio_filepath", "file"])
@pytest.mark.parametrize("text", ["text", "sentence", "transcription"])
def test_columns_are_known_by_their_other_names(tmp_path, audio, text):
    own = {audio: "a.wav", text: "ab", "duration": "1"}
    usual = {"path": "a.wav", "text": "ab"}
    line = f'{{"{audio}": "a.wav", "{text}": "ab", "duration": 1}}\n'
    for path in (
        table(tmp_path, "clips.csv", f"{audio},{text},duration\na.wav,ab,1\n"),
        table(tmp_path, "clips.tsv", f"{audio}\t{text}\tduration\na.wav\tab\t1\n"),
        table(tmp_path, "clips.jsonl", line),
        table(tmp_path, "clips.json", line),
    ):
        assert read_manifest(path) == [own | usual]
    samples = sound(0, 500)
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    for clips in (
        find_clips(tmp_path / "clips.csv"),
        find_clips([{**own, audio: str(tmp_path / "a.wav")}]),
    ):
        assert clips.rows[0]["text"] == "ab"
        np.testing.assert_array_equal(clips.read(0), samples)


def test_the_usual_name_goes_before_the_others(tmp_path):
    content = "file,path,sentence,text\nx.wav,a.wav,no,ab\n"
    (row,) = read_manifest(table(tmp_path, "clips.csv", content))
    assert (row["path"], row["text"]) == ("a.wav", "ab")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", 'path,text\na.wav,"Hi\n', "cannot be read as a table: unexpected end"),
        ("a.csv", "path,text\na.wav,Hi, you\n", r"for 'a.wav' \(row 1\): put cells that hold"),
        ("a.csv", "path,path\na.wav,b.wav\n", "the column 'path' twice"),
        ("a.csv", "", "has no rows"),
        ("a.csv", "name,text\na,b\n", "has no column 'path'"),
        ("a.tsv", "path\ttext\n" + "a" * 200_000 + "\tb\n", "field larger than field limit"),
        ("a.jsonl", "[" * 100_000 + "\n", "no JSON object in line 1"),
        ("a.jsonl", "[1]\n", "no JSON object in line 1"),
    ],
)
def test_broken_tables_are_said_in_a_sentence(tmp_path, name, content, message):
    with pytest.raises(ji.InputError, match=message) as error:
        read_manifest(table(tmp_path, name, content))
    assert "\n" not in str(error.value)


def test_a_table_that_needs_its_own_columns_has_them_under_their_names(tmp_path):
    path = table(tmp_path, "classes.csv", "value,class\nthe,function\n")
    assert read_table(path, ("value", "class"), "") == [{"value": "the", "class": "function"}]
    with pytest.raises(ji.InputError, match="no column 'path'"):
        read_table(table(tmp_path, "b.csv", "audio\na.wav\n"), ("path",), "give it")


def test_files_folders_and_ids_are_told_apart(tmp_path):
    (tmp_path / "folder").mkdir()
    assert is_dataset(tmp_path / "folder")
    assert is_dataset(f"{tmp_path}/folder:test")
    for name in ("owner/name", "owner/name-v1.0", "owner/name:test", "owner/name:clean:test"):
        assert is_id(name)
        assert local_or_id(name) == name
    for name in ("clips/absent.tsv", "clips/absent.flac", "absent", "/owner/name", "a/b/c"):
        assert not is_dataset(name)
        assert local_or_id(name).name == name.rpartition("/")[2]


def test_without_the_package_the_error_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for source in (tmp_path, "owner/name"):
        with pytest.raises(ji.InputError, match=r"pip install 'jaxasr-interp\[datasets\]'"):
            find_clips(source)


def test_a_folder_that_datasets_saved_is_read(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    samples = [sound(i, 500 + 50 * i) for i in range(3)]
    for i, one in enumerate(samples):
        soundfile.write(tmp_path / f"{i}.wav", one, 16_000, subtype="FLOAT")
    columns = {
        "audio": [{"bytes": (tmp_path / f"{i}.wav").read_bytes(), "path": None} for i in range(3)],
        "sentence": ["ab", "b", "a"],
        "tags": [[1], [2], [3]],
        "speaker": [7, 8, 8],
    }
    features = datasets.Features(
        audio=datasets.Audio(),
        sentence=datasets.Value("string"),
        tags=[datasets.Value("int64")],
        speaker=datasets.ClassLabel(num_classes=9),
    )
    whole = datasets.Dataset.from_dict(columns).cast(features)
    whole.save_to_disk(str(tmp_path / "one"))
    both = datasets.DatasetDict(train=whole.select([0]), test=whole.select([1, 2]))
    both.save_to_disk(str(tmp_path / "both"))
    (tmp_path / "parquet").mkdir()
    whole.to_parquet(str(tmp_path / "parquet" / "train.parquet"))
    for source, numbers in (
        (tmp_path / "one", [0, 1, 2]),
        (f"{tmp_path}/both:test", [1, 2]),
        (tmp_path / "parquet", [0, 1, 2]),
    ):
        clips = find_clips(source)
        assert [row["text"] for row in clips.rows] == [columns["sentence"][i] for i in numbers]
        assert [row["speaker"] for row in clips.rows] == [
            str(columns["speaker"][i]) for i in numbers
        ]
        assert "tags" not in clips.columns
        for row, number in enumerate(numbers):
            np.testing.assert_array_equal(clips.read(row), samples[number])
    for source, message in (
        (tmp_path / "both", "has the splits train, test: write .*both:train"),
        (f"{tmp_path}/both:dev", "has the splits"),
        ("owner/name", "owner/name cannot be read as a data set"),
    ):
        with pytest.raises(ji.InputError, match=message) as error:
            find_clips(source)
        assert "\n" not in str(error.value)
