"""A folder with the tiny model and a table of short clips whose texts differ in length."""

import soundfile

from helpers.files import copy_tiny_model, sound, write_table

TEXTS = ("ab", "a bc", "ab c d", "abc de", "b", "c dd", "ad", "a b c")


def make_folder(folder, tokenizer, texts=TEXTS):
    """Write the model, `clips.tsv` and its audio to a folder."""
    folder.mkdir(exist_ok=True)
    copy_tiny_model(folder / "model", tokenizer)
    rows = []
    for i, text in enumerate(texts):
        for name, seed in ((f"{i}.wav", i), (f"{i}_other.wav", 100 + i)):
            soundfile.write(folder / name, sound(seed, 700 + 90 * i), 16000, subtype="FLOAT")
        words = text.split()
        rows.append(
            {
                "path": f"{i}.wav",
                "text": text,
                "lang": "en",
                "corrupted": f"{i}_other.wav",
                "asked": words[0],
                "speaker": ["even", "odd"][i % 2],
            }
        )
    write_table(folder / "clips.tsv", rows)
    return folder
