"""Files: the bundled clips, made-up sound, tables of clips, and how a picture begins."""

import json
import shutil
from importlib import resources

import numpy as np
import soundfile

from helpers.golden import GOLDEN

DATA = resources.files("jaxasr_interp") / "data"
GRASS, GLASS = str(DATA / "grass.flac"), str(DATA / "glass.flac")
PNG = b"\x89PNG\r\n\x1a\n"


def sound(number: int, length: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    return (0.1 * rng.standard_normal(length)).astype(np.float32)


def write_table(path, rows):
    lines = ["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def copy_tiny_model(folder, tokenizer):
    """Put the tiny model with its tokenizer in a folder."""
    shutil.copytree(GOLDEN / "tiny_random", folder)
    shutil.copy(tokenizer.path, folder / "tokenizer.json")


def tiny_model_of_30_s(folder, tokenizer):
    """Put the tiny model in a folder, with as many frames as Whisper has: commands hear 30 s."""
    from safetensors.numpy import load_file, save_file

    copy_tiny_model(folder, tokenizer)
    config = json.loads((folder / "config.json").read_text())
    config |= {"max_source_positions": 1_500, "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    name = "model.encoder.embed_positions.weight"
    weights[name] = np.resize(weights[name], (1_500, config["d_model"]))
    save_file(
        {key: value.astype(np.float32) for key, value in weights.items()},
        folder / "model.safetensors",
    )


def tiny_folder(folder, tokenizer, count):
    """Fill a folder with the tiny model, its tokenizer, and a table of many short clips."""
    copy_tiny_model(folder / "model", tokenizer)
    rows = []
    for i in range(count):
        soundfile.write(folder / f"{i}.wav", sound(i, 500 + 50 * i), 16000)
        rows.append(
            {"path": f"{i}.wav", "text": "ab", "lang": "en", "speaker": ["even", "odd"][i % 2]}
        )
    write_table(folder / "clips.tsv", rows)
    return folder


def contents(folder):
    """The bytes of every file of a folder, by path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
