"""The named shapes that benchmarks run on: a model and a pair of runs."""

import dataclasses
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxasr_interp as ji

SIZES = {
    "tiny": (384, 4, 6, 80, 51865),
    "base": (512, 6, 8, 80, 51865),
    "small": (768, 12, 12, 80, 51865),
    "large-v3": (1280, 32, 20, 128, 51866),
}
CONTEXT = " On Saturday the sun came out, and we did all the work that had been waiting for us."


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a benchmark runs on.

    Attributes:
        name: as on the command line.
        model: with its weights.
        clean: the clean run.
        corrupted: the corrupted run.
        token: whose log-probability after the last position is the metric.
    """

    name: str
    model: ji.Whisper
    clean: ji.Utterance
    corrupted: ji.Utterance
    token: int

    @property
    def metric(self) -> ji.metrics.LogProb:
        """Log-probability of the token."""
        return ji.metrics.log_prob(self.token)


def real(name: str, n_tokens: int) -> Shape:
    """Real weights; "… cut the" heard before "grass" or "glass", behind as much context as fits."""
    model = ji.load_model(name)
    tokenizer = model.tokenizer
    assert tokenizer is not None
    said = tokenizer.encode(" My brother went outside to cut the")
    plain = tokenizer.prompt()
    room = n_tokens - len(said) - len(plain)
    prompt = (
        tokenizer.prompt(previous=tokenizer.encode(CONTEXT * 20)[1 - room :]) if room else plain
    )
    tokens = jnp.asarray([*prompt, *said], jnp.int32)
    assert len(tokens) == n_tokens
    mels = []
    for word in ("grass", "glass"):
        with resources.as_file(resources.files("jaxasr_interp") / "data" / f"{word}.flac") as path:
            mels.append(ji.log_mel_spectrogram(ji.load_audio(path), model.config.n_mels))
    clean, corrupted = (ji.Utterance(mel, tokens) for mel in mels)
    return Shape(f"{name}-{n_tokens}", model, clean, corrupted, tokenizer.encode(" grass")[0])


def config(name: str) -> ji.WhisperConfig:
    """The sizes of a model."""
    d_model, layers, heads, n_mels, d_vocab = SIZES[name]
    return ji.WhisperConfig(
        n_mels=n_mels,
        d_vocab=d_vocab,
        d_model=d_model,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_heads=heads,
        decoder_heads=heads,
        encoder_d_mlp=4 * d_model,
        decoder_d_mlp=4 * d_model,
    )


def random(name: str, n_tokens: int, dtype: str) -> Shape:
    """Random weights of a real size, random spectrograms and tokens."""
    _, _, _, n_mels, d_vocab = SIZES[name]
    model = ji.Whisper(config(name), rngs=nnx.Rngs(0))
    model = jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, model)
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, d_vocab, n_tokens), jnp.int32)
    clean, corrupted = (
        ji.Utterance(jnp.asarray(rng.normal(size=(n_mels, 3000)), jnp.float32), tokens)
        for _ in range(2)
    )
    return Shape(f"{name}-{n_tokens}-random-{dtype}", model, clean, corrupted, 1234)
