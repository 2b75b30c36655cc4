"""Answers when words are said, by faster-whisper: JSON lines, as `worker.py`.

python benchmarks/peers/faster_whisper_worker.py

{"op": "load", "folder": DIR}
{"op": "words", "file": NPY}
"""

from importlib.metadata import version

import numpy as np
from faster_whisper import WhisperModel
from serving import Answer, serve


class Worker:
    """A loaded model."""

    model: WhisperModel

    def load(self, folder: str) -> Answer:
        """Load a folder with `model.bin`, to compute in float32."""
        self.model = WhisperModel(folder, device="cpu", compute_type="float32", cpu_threads=2)
        return {"versions": {"faster-whisper": version("faster-whisper")}}

    def words(self, file: str) -> Answer:
        """The words of its own transcript of a clip of English, with their starts and ends."""
        segments, _ = self.model.transcribe(
            np.load(file), language="en", beam_size=1, temperature=0.0, word_timestamps=True
        )
        words = [word for segment in segments for word in segment.words or ()]
        return {"words": [(word.word.strip(), word.start, word.end) for word in words]}


def main() -> None:
    """Answer until stdin ends."""
    worker = Worker()
    serve({"load": worker.load, "words": worker.words})


if __name__ == "__main__":
    main()
