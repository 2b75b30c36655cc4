"""A tiny random Whisper in float64: its checkpoint, every activation, a lens and a patching sweep.

Weights are random and not small, so that a wrong scale, a dropped bias or a swapped axis shows.
Writes `tests/golden/tiny_random/`.
"""

import numpy as np
import torch
from clips import GOLDEN
from hooks import Acts, Recorder, decoder_sites, encoder_sites, patch_input
from numpy_whisper import numpy_forward
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

FOLDER = GOLDEN / "tiny_random"
SEED = 20
END, START, ENGLISH, GERMAN, TRANSLATE, TRANSCRIBE = 30, 31, 32, 33, 34, 35
START_OF_LM, START_OF_PREVIOUS, NO_SPEECH, NO_TIMESTAMPS = 36, 37, 38, 39
TOKENS_A = [START, ENGLISH, TRANSCRIBE, 7, 12, 3, 21]
TOKENS_B = [START, GERMAN, TRANSCRIBE, 18, 12, 26, 21]


def main() -> None:
    """Write the checkpoint, read it back, and record it."""
    generator = torch.Generator().manual_seed(SEED)
    random_model(generator).save_pretrained(FOLDER)
    model = WhisperForConditionalGeneration.from_pretrained(
        FOLDER, dtype=torch.float64, attn_implementation="eager"
    ).eval()
    mel_a, mel_b = torch.randn(2, 8, 24, generator=generator, dtype=torch.float64)
    tokens_a, tokens_b = torch.tensor(TOKENS_A), torch.tensor(TOKENS_B)

    arrays = {"mel_a": mel_a, "mel_b": mel_b, "tokens_a": tokens_a, "tokens_b": tokens_b}
    with torch.no_grad():
        seen = Recorder(model)
        logits = run(model, mel_a, tokens_a)
        acts = {f"encoder/{site}": value for site, value in encoder_sites(model, seen).items()}
        acts |= {f"decoder/{site}": value for site, value in decoder_sites(model, seen).items()}
        check_float64(model, mel_a, tokens_a, acts)
        resid_pre, resid_post = acts["decoder/resid_pre"], acts["decoder/resid_post"]
        arrays |= acts
        arrays["lens/logits"] = model.proj_out(model.model.decoder.layer_norm(resid_post))
        arrays |= sweep(model, logits, resid_pre, mel_b, tokens_b)

    stored = {key: value.detach().numpy() for key, value in arrays.items()}
    stored |= {k: v.astype(np.int32) for k, v in stored.items() if v.dtype == np.int64}
    np.savez_compressed(FOLDER / "activations.npz", **stored)
    t, u = int(stored["t"]), int(stored["u"])
    print(f"{len(stored)} arrays, t {t}, u {u}")


def random_model(generator: torch.Generator) -> WhisperForConditionalGeneration:
    """A 2 + 3 layer Whisper with different head counts and MLP widths in its two stacks."""
    config = WhisperConfig(
        vocab_size=48,
        num_mel_bins=8,
        d_model=16,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=40,
        max_source_positions=12,
        max_target_positions=20,
        decoder_start_token_id=START,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=END,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config).to(torch.float64).eval()
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        is_norm_weight = name.endswith("layer_norm.weight")
        parameter.data = 1 + 0.2 * noise if is_norm_weight else 0.3 * noise
    model.generation_config = GenerationConfig(
        decoder_start_token_id=START,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=END,
        is_multilingual=True,
        lang_to_id={"<|en|>": ENGLISH, "<|de|>": GERMAN},
        task_to_id={"translate": TRANSLATE, "transcribe": TRANSCRIBE},
        no_timestamps_token_id=NO_TIMESTAMPS,
        prev_sot_token_id=START_OF_PREVIOUS,
        suppress_tokens=[
            1,
            2,
            START,
            TRANSLATE,
            TRANSCRIBE,
            START_OF_LM,
            START_OF_PREVIOUS,
            NO_SPEECH,
        ],
        begin_suppress_tokens=[5, END],
        alignment_heads=[[1, 0], [2, 1]],
        max_initial_timestamp_index=3,
        max_length=20,
        return_timestamps=False,
    )
    return model


def run(
    model: WhisperForConditionalGeneration, mel: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """Logits [pos, d_vocab] of one example, without a cache."""
    return model(mel[None], decoder_input_ids=tokens[None], use_cache=False).logits[0]


def sweep(
    model: WhisperForConditionalGeneration,
    clean_logits: torch.Tensor,
    clean_resid_pre: torch.Tensor,
    mel: torch.Tensor,
    tokens: torch.Tensor,
) -> Acts:
    """Patch each clean decoder `resid_pre` [layer, pos] into the corrupted run, one run a patch."""
    corrupted_logits = run(model, mel, tokens)
    t, u = clean_logits[-1].argmax(), corrupted_logits[-1].argmax()
    if t == u:
        raise ValueError("clean and corrupted runs predict the same token: choose another SEED")

    def metrics(logits: torch.Tensor) -> dict[str, float]:
        clean, patched = (x[-1].log_softmax(-1) for x in (clean_logits, logits))
        return {
            "log_prob": patched[t].item(),
            "logit_diff": (logits[-1, t] - logits[-1, u]).item(),
            "kl": (clean.exp() * (clean - patched)).sum().item(),
        }

    layers, positions = clean_resid_pre.shape[:2]
    baselines = {"clean": metrics(clean_logits), "corrupted": metrics(corrupted_logits)}
    grids = {metric: np.empty((layers, positions)) for metric in baselines["clean"]}
    for layer in range(layers):
        for position in range(positions):
            value = clean_resid_pre[layer, position]
            with patch_input(model.model.decoder.layers[layer], position, value):
                patched = metrics(run(model, mel, tokens))
            for metric, number in patched.items():
                grids[metric][layer, position] = number
    out = {f"sweep/resid_pre/{metric}": torch.from_numpy(grid) for metric, grid in grids.items()}
    for name, values in baselines.items():
        for metric, number in values.items():
            out[f"sweep/{name}/{metric}"] = torch.tensor(number, dtype=torch.float64)
    return out | {"t": t, "u": u}


def check_float64(
    model: WhisperForConditionalGeneration, mel: torch.Tensor, tokens: torch.Tensor, acts: Acts
) -> None:
    """Compare every site with a plain numpy float64 forward pass: a hidden cast would show."""
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    expected = numpy_forward(weights, mel.numpy(), tokens.numpy(), encoder_heads=4, decoder_heads=2)
    if set(acts) != set(expected):
        raise ValueError(f"sites differ: {sorted(set(acts) ^ set(expected))}")
    for name, value in acts.items():
        if value.dtype != torch.float64:
            raise TypeError(f"{name} is {value.dtype}")
        np.testing.assert_allclose(
            value.detach().numpy(), expected[name], rtol=0, atol=1e-12, err_msg=name
        )


if __name__ == "__main__":
    main()
