"""The speech the goldens are made from: clips, their manifest and their log-mel spectrograms."""

import csv
import os
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
from transformers import WhisperFeatureExtractor

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
SAMPLE_RATE = 16_000
N_SAMPLES = 30 * SAMPLE_RATE
JFK = "read_en/speeches_jfk.flac"


def data_folder() -> Path:
    """The speech folder: `JAXASR_DATA`, then `../shared/data` beside the repository."""
    folder = Path(os.environ.get("JAXASR_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "manifest.tsv").is_file():
        raise FileNotFoundError(f"no manifest.tsv in {folder.name}: set JAXASR_DATA")
    return folder


def clip_paths(*kinds: str) -> list[str]:
    """Paths, relative to the speech folder, of every clip of these kinds, in manifest order."""
    with (data_folder() / "manifest.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [row["path"] for row in rows if row["kind"] in kinds]


def sample_clips(count: int) -> list[str]:
    """`count` clips of kind `read_en`, evenly spread over the manifest, the 1961 speech first."""
    paths = [path for path in clip_paths("read_en") if path != JFK]
    return [JFK, *(paths[round(i)] for i in np.linspace(0, len(paths) - 1, count - 1))]


def load_audio(path: str) -> np.ndarray:
    """A clip as float32 samples."""
    audio, rate = sf.read(data_folder() / path, dtype="float32")
    if rate != SAMPLE_RATE or audio.ndim != 1:
        raise ValueError(f"{path}: expected 16 kHz mono, found {rate} Hz, shape {audio.shape}")
    return audio


def log_mel(path: str) -> torch.Tensor:
    """The log-mel [1, 80, 3000] of a clip zero-padded to 30 s, by `transformers`' numpy path."""
    audio = load_audio(path)
    if len(audio) > N_SAMPLES:
        raise ValueError(f"{path}: longer than 30 s")
    padded = np.pad(audio, (0, N_SAMPLES - len(audio)))
    mel = WhisperFeatureExtractor(feature_size=80)._np_extract_fbank_features(padded[None], "cpu")
    return torch.from_numpy(mel.astype(np.float32))
