"""CTranslate2's own converter on the tiny random model, one folder per quantisation.

Writes `tests/golden/tiny_random_ct2/<quantisation>/` with `model.bin` and `config.json`.
"""

from pathlib import Path

import torch
from ctranslate2.converters.transformers import WhisperLoader
from transformers import WhisperForConditionalGeneration

GOLDEN = Path(__file__).parents[1] / "golden"
QUANTISATIONS = ("float32", "float16", "bfloat16", "int8_float32", "int16")


def main() -> None:
    """Convert with every quantisation."""
    for quantisation in QUANTISATIONS:
        # Loaded anew each time: the converter scales the weights in place.
        model = WhisperForConditionalGeneration.from_pretrained(
            GOLDEN / "tiny_random", dtype=torch.float32
        )
        spec = WhisperLoader().get_model_spec(model)
        spec.register_vocabulary([str(token) for token in range(model.config.vocab_size)])
        spec.validate()
        spec.optimize(quantization=quantisation)
        folder = GOLDEN / "tiny_random_ct2" / quantisation
        folder.mkdir(parents=True, exist_ok=True)
        spec.save(str(folder))
        (folder / "vocabulary.json").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
