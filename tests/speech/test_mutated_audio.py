"""Whatever is wrong with an audio file, it is read or refused: within bounds of memory and time."""

import json
import subprocess
import sys
from importlib import resources

import numpy as np
import pytest
import soundfile

from helpers.audio import encoded, mutated, written

_BY_LIBSNDFILE = {
    "wav": ("WAV", "PCM_16", None),
    "float": ("WAV", "FLOAT", None),
    "adpcm": ("WAV", "IMA_ADPCM", None),
    "rifx": ("WAV", "PCM_16", "BIG"),
    "rf64": ("RF64", "PCM_16", None),
    "w64": ("W64", "PCM_16", None),
    "flac": ("FLAC", "PCM_16", None),
    "vorbis": ("OGG", "VORBIS", None),
    "opus": ("OGG", "OPUS", None),
    "mp3": ("MP3", None, None),
    "aiff": ("AIFF", "PCM_16", None),
    "au": ("AU", "PCM_16", None),
    "alac": ("CAF", "ALAC_16", None),
}
_BY_FFMPEG = {
    "m4a": ("mp4", "aac", 16_000),
    "aac": ("adts", "aac", 16_000),
    "wma": ("asf", "wmav2", 16_000),
    "webm": ("webm", "libopus", 48_000),
}
_SECONDS, _BYTES = 20, 2 << 30

_READ = """
import faulthandler, json, resource, sys, warnings
from pathlib import Path
import jaxasr_interp as ji

resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[3]),) * 2)
warnings.simplefilter("ignore", ji.AudioWarning)
for path in sorted(Path(sys.argv[1]).iterdir()):
    faulthandler.dump_traceback_later(float(sys.argv[2]), exit=True)
    try:
        outcome = len(ji.load_audio(path))
    except ji.InputError as error:
        outcome = str(error)
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps([path.name, outcome]), flush=True)
"""


@pytest.mark.parametrize("count", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_a_file_with_errors_is_read_or_refused_in_a_sentence(tmp_path, count):
    grass = resources.files("jaxasr_interp") / "data" / "grass.flac"
    with resources.as_file(grass) as path:
        samples = soundfile.read(path, dtype="float32")[0]
    whole = {
        name: written(samples, format=kind, subtype=subtype, endian=endian)
        for name, (kind, subtype, endian) in _BY_LIBSNDFILE.items()
    } | {name: encoded(samples, *how) for name, how in _BY_FFMPEG.items()}
    for number in range(count):
        for name, content in whole.items():
            rng = np.random.default_rng([number, *name.encode()])
            (tmp_path / f"{number}.{name}").write_bytes(mutated(content, rng))

    done = subprocess.run(
        [sys.executable, "-c", _READ, str(tmp_path), str(_SECONDS), str(_BYTES)],
        capture_output=True,
        text=True,
    )
    # Nothing else is said: decoders do not write to the terminal.
    assert (done.returncode, done.stderr) == (0, "")
    outcomes = dict(map(json.loads, done.stdout.splitlines()))
    assert outcomes.keys() == {path.name for path in tmp_path.iterdir()}
    refused = [outcome for outcome in outcomes.values() if isinstance(outcome, str)]
    assert not any("\n" in sentence for sentence in refused)
    # The errors are such that some files of each kind are read, and some refused.
    for name in whole:
        kinds = {type(outcomes[f"{number}.{name}"]) for number in range(count)}
        assert kinds == {int, str}, name
