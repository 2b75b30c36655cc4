"""Transcribes a file as a script of its own: loads the model, prints the text.

python benchmarks/peers/faster_whisper_command.py FOLDER CLIP
"""

import sys

from faster_whisper import WhisperModel


def main() -> None:
    """Print the text of a clip, whose language is detected, greedily, in float32."""
    folder, clip = sys.argv[1:]
    model = WhisperModel(folder, device="cpu", compute_type="float32", cpu_threads=2)
    segments, _ = model.transcribe(clip, beam_size=1, temperature=0.0)
    print("".join(segment.text for segment in segments))


if __name__ == "__main__":
    main()
