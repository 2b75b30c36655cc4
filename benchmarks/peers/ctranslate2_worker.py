"""Answers benchmark requests by CTranslate2, faster-whisper's engine: JSON lines, as `worker.py`.

python benchmarks/peers/ctranslate2_worker.py

{"op": "load", "folder": DIR, "threads": 2}
{"op": "speech", "file": NPZ}
{"op": "generate", "clips": [0, 1], "prompt": [50258, ...], "batch": 1}
"""

import time
from importlib.metadata import version
from pathlib import Path

import ctranslate2
import numpy as np
from serving import Answer, reset_resident_peak, resident_peak, serve


class Worker:
    """A loaded model and the clips it transcribes."""

    model: ctranslate2.models.Whisper
    mels: np.ndarray

    def load(self, folder: str, threads: int, device: str = "cpu") -> Answer:
        """Load a folder with `model.bin`, to compute in float32."""
        self.model = ctranslate2.models.Whisper(
            folder, device=device, compute_type="float32", intra_threads=threads
        )
        return {"threads": threads, "versions": {"ctranslate2": version("ctranslate2")}}

    def hear(self, file: str) -> Answer:
        """Take the clips that are transcribed from now on."""
        with np.load(Path(file)) as arrays:
            self.mels = np.ascontiguousarray(arrays["mels"], np.float32)
        return {"clips": len(self.mels)}

    def generate(self, clips: list[int], prompt: list[int], batch: int = 1) -> Answer:
        """Greedy tokens of each clip; what is suppressed is what the folder's config says."""
        reset_resident_peak()
        tokens: list[list[int]] = []
        encode_seconds = generate_seconds = 0.0
        for start in range(0, len(clips), batch):
            mels = self.mels[clips[start : start + batch]]
            started = time.perf_counter()
            states = self.model.encode(ctranslate2.StorageView.from_array(mels))
            encoded = time.perf_counter()
            results = self.model.generate(states, [prompt] * len(mels), beam_size=1)
            generate_seconds += time.perf_counter() - encoded
            encode_seconds += encoded - started
            tokens += [result.sequences_ids[0] for result in results]
        return {
            "seconds": encode_seconds + generate_seconds,
            "encode_seconds": encode_seconds,
            "generate_seconds": generate_seconds,
            "tokens": [tokens],
            "peak_bytes": resident_peak(),
        }


def main() -> None:
    """Answer until stdin ends."""
    worker = Worker()
    serve({"load": worker.load, "speech": worker.hear, "generate": worker.generate})


if __name__ == "__main__":
    main()
