"""Check every method against hooks over the whole model, on a tiny random Whisper.

    python benchmarks/peers/check.py [--device cuda]

Runs in the peers' environment, in float64 and float32.
"""

import argparse
import itertools

import torch
from job import Inputs, Stopwatch
from sites import DECODER, HEAD_SITES, Patch, Sweep
from transformers import WhisperConfig, WhisperForConditionalGeneration
from worker import METHODS

TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}
TOKENS = 7
FRAMES = 12


def main() -> None:
    parser = argparse.ArgumentParser(description="Every method against hooks over the whole model.")
    parser.add_argument("--device", default="cpu")
    device = torch.device(parser.parse_args().device)
    torch.backends.fp32_precision = "ieee"
    for dtype in TOLERANCE:
        check(device, dtype)


@torch.inference_mode()
def check(device: torch.device, dtype: torch.dtype) -> None:
    """Compare all methods on all their sites in one dtype."""
    generator = torch.Generator().manual_seed(0)
    model = random_model(generator).to(device, dtype)
    inputs = random_inputs(model.config, generator, device, dtype)

    def values(method: str, sweep: Sweep) -> torch.Tensor:
        out = METHODS[method](model, inputs, sweep, Stopwatch(device))
        return torch.tensor(out, dtype=torch.float64)

    onednn = ["batched_onednn"] if (device.type, dtype) == ("cpu", torch.float32) else []
    for sweep, methods in sweeps(model.config, onednn):
        expected = values("hooks_model", sweep)
        if expected.std() < 1e-3:
            raise AssertionError(f"{sweep.site}: the patches hardly differ, nothing is checked")
        for method in methods:
            error = (values(method, sweep) - expected).abs().max().item()
            site = sweep.site if sweep.head is None else f"{sweep.site} head {sweep.head}"
            print(f"{dtype} {sweep.stack} {site:16} {method:22} {error:.1e}")
            if not error <= TOLERANCE[dtype]:
                raise AssertionError(f"{method} differs by {error} from hooks_model at {site}")


def sweeps(config: WhisperConfig, onednn: list[str]) -> list[tuple[Sweep, list[str]]]:
    """Sweeps that cover every site, with the methods that can run each; no batch divides them."""
    cells = [
        Patch(layer, position, position + 1)
        for layer, position in itertools.product(range(config.decoder_layers), range(TOKENS))
    ]
    decoder = ["hooks_decoder", "batched", *onednn, "nnsight"]
    every = []
    for site in DECODER:
        heads = range(config.decoder_attention_heads) if site in HEAD_SITES else [None]
        every += [(Sweep("decoder", site, cells, head, batch=5), decoder) for head in heads]
    windows = [
        Patch(layer, start, start + 3)
        for layer, start in itertools.product(range(config.encoder_layers), range(0, FRAMES, 3))
    ]
    every.append((Sweep("encoder", "resid_pre", windows, batch=3), ["encoder_hooks_batched"]))
    final = [patch for patch in windows if patch.layer == 0]
    output = ["encoder_hooks_batched", "encoder_output_windows"]
    every.append((Sweep("encoder", "ln_final", final, batch=3), output))
    return every


def random_model(generator: torch.Generator) -> WhisperForConditionalGeneration:
    """A 2 + 3 layer Whisper with weights large enough for every patch to show."""
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
        max_source_positions=FRAMES,
        max_target_positions=20,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=0,
    )
    config._attn_implementation = "sdpa"
    model = WhisperForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_norm_weight = name.endswith("layer_norm.weight")
        parameter.data = 1 + 0.2 * noise if is_norm_weight else 0.3 * noise
    return model


def random_inputs(
    config: WhisperConfig, generator: torch.Generator, device: torch.device, dtype: torch.dtype
) -> Inputs:
    """A pair of runs that differ in audio and in tokens."""
    mels = [
        torch.randn(1, config.num_mel_bins, 2 * FRAMES, generator=generator).to(device, dtype)
        for _ in range(2)
    ]
    tokens = [
        torch.randint(config.vocab_size, (1, TOKENS), generator=generator).to(device)
        for _ in range(2)
    ]
    return Inputs(mels[0], mels[1], tokens[0], tokens[1], token=5)


if __name__ == "__main__":
    main()
