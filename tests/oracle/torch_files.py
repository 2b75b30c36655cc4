"""What torch writes: state dicts of Hugging Face's and OpenAI's models, views, the old format.

Writes `tests/golden/torch_files/`. OpenAI's model is a random one of its own code.
"""

import json

import numpy as np
import torch
import whisper
from clips import GOLDEN
from safetensors.torch import load_file, save_file

FOLDER = GOLDEN / "torch_files"
SEED = 21
DIMS = {
    "n_mels": 8,
    "n_audio_ctx": 12,
    "n_audio_state": 16,
    "n_audio_head": 4,
    "n_audio_layer": 2,
    "n_vocab": 48,
    "n_text_ctx": 20,
    "n_text_state": 16,
    "n_text_head": 2,
    "n_text_layer": 3,
}


def main() -> None:
    """Write everything."""
    FOLDER.mkdir(exist_ok=True)
    state = load_file(GOLDEN / "tiny_random" / "model.safetensors")
    torch.save({k: v.float() for k, v in state.items()}, FOLDER / "pytorch_model.bin")
    shards({name: value.half() for name, value in state.items()})
    openai()
    base = torch.arange(60, dtype=torch.bfloat16).reshape(6, 10)
    views = {"base": base, "transposed": base.T, "strided": base[1::2, 2::3], "row": base[3]}
    torch.save(views, FOLDER / "views.bin")
    copies = {
        name: view.clone(memory_format=torch.contiguous_format) for name, view in views.items()
    }
    save_file(copies, FOLDER / "views.safetensors")
    torch.save({"row": base[3].clone()}, FOLDER / "old.bin", _use_new_zipfile_serialization=False)


def shards(state: dict[str, torch.Tensor]) -> None:
    """Write a state dict in two files with an index, as transformers did."""
    names = sorted(state)
    files = {f"pytorch_model-0000{i + 1}-of-00002.bin": names[i::2] for i in range(2)}
    for file, part in files.items():
        torch.save({name: torch.nn.Parameter(state[name]) for name in part}, FOLDER / file)
    index = {"metadata": {}, "weight_map": {n: file for file, part in files.items() for n in part}}
    (FOLDER / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=1) + "\n")


def openai() -> None:
    """Write a random model as OpenAI publishes its own, and its logits in float64."""
    torch.manual_seed(SEED)
    model = whisper.model.Whisper(whisper.model.ModelDimensions(**DIMS))
    generator = torch.Generator().manual_seed(SEED)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    model = model.half()
    state = model.state_dict()
    torch.save({"dims": DIMS, "model_state_dict": state}, FOLDER / "openai.pt")
    save_file(
        {name: value.contiguous() for name, value in state.items()}, FOLDER / "openai.safetensors"
    )
    with np.load(GOLDEN / "tiny_random" / "activations.npz") as golden:
        mel, tokens = torch.from_numpy(golden["mel_a"]), torch.from_numpy(golden["tokens_a"])
    # OpenAI's layers compute norms and logits in float32 whatever the model's type.
    torch.Tensor.float = torch.Tensor.double
    with torch.no_grad():
        logits = model.double()(mel[None], tokens[None].long())[0]
    np.save(FOLDER / "openai_logits.npy", logits.numpy())


if __name__ == "__main__":
    main()
