"""Words said one at a time and placed with pauses, so that their times are known.

    pip install espeakng-loader
    python tests/oracle/spoken_words.py

Writes `tests/golden/spoken_words.flac` and its words with their times, made by espeak-ng 1.52
(espeakng-loader 0.2.4).
"""

import json
import sys
from pathlib import Path

import soundfile

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

from synthesizer import SAMPLE_RATE, Synthesizer  # noqa: E402

WORDS = ["seven", "children", "played", "football", "behind", "the", "church"]
PAUSES = [0.4, 0.3, 0.6, 0.25, 0.7, 0.35, 0.5, 0.4]


def main() -> None:
    spoken = Synthesizer().single_words(WORDS, "en-us", PAUSES)
    golden = ROOT / "tests" / "golden"
    soundfile.write(golden / "spoken_words.flac", spoken.audio, SAMPLE_RATE, subtype="PCM_16")
    times = {
        "words": WORDS,
        "starts": [round(float(start), 4) for start in spoken.starts],
        "ends": [round(float(end), 4) for end in spoken.ends],
    }
    (golden / "spoken_words.json").write_text(json.dumps(times) + "\n")


if __name__ == "__main__":
    main()
